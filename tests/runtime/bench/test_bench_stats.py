"""The statistics: known percentiles, blanks where samples are too few, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from rdedge.bench.stats import PERCENTILES, block_length, jitter, percentiles, ratios, samples_for


def correlated(rng: np.random.Generator, count: int, scale: float = 1.0) -> np.ndarray:
    """Latencies that resemble their neighbours, as those of a real machine do (autoregressive, 0.8)."""
    noise = rng.normal(size=count)
    series = np.empty(count)
    series[0] = noise[0]
    for i in range(1, count):
        series[i] = 0.8 * series[i - 1] + noise[i]
    return scale * (10.0 + 0.3 * series)


def test_percentiles_of_the_first_thousand_numbers() -> None:
    values = percentiles(list(range(1, 1001)))
    assert values == pytest.approx([500.5, 900.1, 950.05, 990.01, 999.001])


@pytest.mark.parametrize(
    ("count", "known"),
    [(0, 0), (1, 0), (2, 1), (9, 1), (10, 2), (19, 2), (20, 3), (99, 3), (100, 4), (999, 4), (1000, 5)],
)
def test_a_percentile_is_blank_where_no_sample_would_lie_beyond_it(count: int, known: int) -> None:
    values = percentiles([1.0] * count)
    assert values == [1.0] * known + [None] * (len(PERCENTILES) - known)


def test_samples_needed() -> None:
    assert [samples_for(p) for p in PERCENTILES] == [2, 10, 20, 100, 1000]


@pytest.mark.parametrize(("samples", "value"), [([], None), ([3.0], None), ([3.0, 1.0, 2.0], 1.5), ([2.0] * 9, 0.0)])
def test_jitter_is_the_mean_step(samples: list[float], value: float | None) -> None:
    assert jitter(samples) == value


def test_a_series_against_its_double_is_two_whatever_the_percentile() -> None:
    series = correlated(np.random.default_rng(0), 6000)
    for found in ratios([series], [2.0 * series]):
        assert found is not None
        ratio, low, high = found
        assert ratio == pytest.approx(2.0) and low < 2.0 < high and low > 1.5


@pytest.mark.parametrize(("count", "known"), [(9, 0), (10, 1), (50, 2), (100, 3), (499, 3), (500, 4), (5000, 5)])
def test_ratios_need_five_samples_beyond_the_percentile(count: int, known: int) -> None:
    many, few = np.linspace(1.0, 2.0, 6000), np.linspace(1.0, 2.0, count)
    for found in (ratios([many], [few]), ratios([few], [many])):
        assert [value is not None for value in found] == [True] * known + [False] * (len(PERCENTILES) - known)


def test_equal_machines_seldom_seem_different_though_latencies_correlate() -> None:
    """Some 3 of 50, where drawing single samples would call some 25 of 50 different."""
    rng = np.random.default_rng(1)
    seeming = 0
    for _ in range(50):
        found = ratios([correlated(rng, 400)], [correlated(rng, 400)])[0]
        assert found is not None
        seeming += not found[1] <= 1.0 <= found[2]
    assert seeming <= 10


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(2)
    found = ratios([correlated(rng, 1000)], [correlated(rng, 1000, scale=1.1)])
    assert found[0] is not None and found[0][1] > 1.0 and found[0][0] == pytest.approx(1.1, abs=0.03)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_runs_that_differ_among_themselves_show_no_difference_of_sides(runs: int) -> None:
    """Each run has a speed of its own, as processes have: 5 % is far more than the noise within."""
    rng = np.random.default_rng(3)
    seeming = 0
    for _ in range(100):
        a, b = ([correlated(rng, 60, scale=rng.normal(1.0, 0.05)) for _ in range(runs)] for _ in "ab")
        found = ratios(a, b)[0]
        assert found is not None
        seeming += not found[1] <= 1.0 <= found[2]
    assert seeming <= 10


def test_a_difference_beyond_that_of_runs_is_found() -> None:
    rng = np.random.default_rng(4)
    a, b = ([scale * correlated(rng, 100, scale=rng.normal(1.0, 0.01)) for _ in range(5)] for scale in (1.0, 1.2))
    found = ratios(a, b)[0]
    assert found is not None and found[1] > 1.05 and found[0] == pytest.approx(1.2, abs=0.05)


def test_the_same_comparison_says_the_same() -> None:
    rng = np.random.default_rng(4)
    a, b = [correlated(rng, 300)], [correlated(rng, 300)]
    assert ratios(a, b) == ratios(a, b)


@pytest.mark.parametrize(("samples", "length"), [(1, 1), (3, 1), (100, 10), (1000, 31)])
def test_blocks(samples: int, length: int) -> None:
    assert block_length(samples) == length
