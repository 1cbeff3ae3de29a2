"""The tail's model against SciPy's, and the intervals of false-reject rates against what new parts show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rdedge.tail import Tail, rate_interval, tail_size
from rdedge.threshold import Method, fit_pixel_threshold, fit_threshold

Floats = NDArray[np.float64]


def excesses(shape: float, n: int = 200_000) -> Floats:
    """Sorted samples (1, n) whose whole upper part is generalised Pareto, scale 2."""
    return np.sort(stats.genpareto.ppf((np.arange(n) + 0.5) / n, shape, scale=2.0))[None]


@pytest.mark.parametrize("shape", [-0.5, -0.1, 0.0, 0.1, 0.4])
def test_the_moments_find_scale_and_shape_again(shape: float) -> None:
    tail = Tail.fit(excesses(shape))
    start = stats.genpareto.ppf(1 - tail.share, shape, scale=2.0)
    assert tail.start[0] == pytest.approx(start, rel=1e-3)
    assert tail.shape[0] == pytest.approx(shape, abs=0.02)
    # Above any level a generalised Pareto tail is one again, its scale grown by shape * level.
    assert tail.scale[0] == pytest.approx(2.0 + shape * start, rel=0.03)


@pytest.mark.parametrize("shape", [-0.9, -0.3, -1e-9, 0.0, 1e-9, 0.2, 0.8])
def test_rates_and_values_are_those_of_scipy(shape: float) -> None:
    tail = Tail(start=np.array([1.5]), scale=np.array([0.7]), shape=np.array([shape]), share=0.2)
    for rate in (0.2, 0.1, 0.01, 1e-4):
        value = tail.value_exceeded_at(rate)
        assert value[0] == pytest.approx(stats.genpareto.isf(rate / 0.2, shape, loc=1.5, scale=0.7), rel=1e-7)
        assert tail.rate_above(value)[0] == pytest.approx(rate, rel=1e-6)
    for value in (1.5, 1.6, 2.5, 40.0):
        expected = 0.2 * stats.genpareto.sf(value, shape, loc=1.5, scale=0.7)
        assert tail.rate_above(np.array([value]))[0] == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_few_excesses_are_drawn_to_shape_0_and_keep_their_mean() -> None:
    scores = np.sort(np.random.default_rng(0).pareto(1.5, (50, 60)), axis=1)
    tail = Tail.fit(scores)
    size = tail_size(60)
    assert size == 12
    for row, start, scale, shape in zip(scores, tail.start, tail.scale, tail.shape, strict=True):
        excess = row[-size:] - start
        moment = np.mean(excess * np.arange(size)[::-1] / (size - 1))
        own = 2 - excess.mean() / (excess.mean() - 2 * moment)
        assert shape == pytest.approx(min(own * 12 / 22, 0.9))
        assert scale / (1 - shape) == pytest.approx(excess.mean())


@pytest.mark.parametrize(("samples", "size"), [(25, 5), (60, 12), (225, 45), (400, 60), (10_000, 300)])
def test_the_tail_is_a_fifth_or_three_roots(samples: int, size: int) -> None:
    assert tail_size(samples) == size


@pytest.mark.parametrize(("above", "samples"), [(0, 1), (0, 152), (1, 152), (7, 30), (29, 30), (30, 30), (90, 9000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_exact_interval_is_clopper_and_pearsons(above: int, samples: int, confidence: float) -> None:
    expected = stats.binomtest(above, samples).proportion_ci(confidence, "exact")
    assert rate_interval(above, samples, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@dataclass(frozen=True)
class Scores:
    """Scores of good parts and the share of them above a limit."""

    draw: Callable[[np.random.Generator, int], Floats]
    rate_above: Callable[[float], float]


def _with_odd_parts(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.01, rng.normal(6.0, 1.0, n), rng.normal(size=n))


POPULATIONS = {
    "normal": Scores(lambda rng, n: rng.normal(size=n), stats.norm.sf),
    "gamma": Scores(lambda rng, n: rng.gamma(2.0, size=n), lambda t: stats.gamma.sf(t, 2.0)),
    "heavy-tailed": Scores(lambda rng, n: rng.standard_t(3.0, n), lambda t: stats.t.sf(t, 3.0)),
    "bounded": Scores(lambda rng, n: rng.random(n), stats.uniform.sf),
    "1 % odd": Scores(_with_odd_parts, lambda t: 0.99 * stats.norm.sf(t) + 0.01 * stats.norm.sf(t - 6.0)),
}


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize(("parts", "rate"), [(30, 0.01), (152, 0.01), (152, 0.001), (1000, 0.01)])
@pytest.mark.parametrize("method", ["quantile", "pot"])
def test_the_rate_of_new_parts_lies_in_the_interval(method: Method, parts: int, rate: float, population: str) -> None:
    rng = np.random.default_rng(11)
    scores = POPULATIONS[population]
    limits = [fit_threshold(scores.draw(rng, parts), rate, method) for _ in range(100)]
    inside = [limit.rate_low <= scores.rate_above(limit.value) <= limit.rate_high for limit in limits]
    assert sum(inside) >= 90


@pytest.mark.parametrize("population", ["normal", "heavy-tailed", "1 % odd"])
def test_modelled_limits_vary_less_than_quantiles_of_few_parts(population: str) -> None:
    rng = np.random.default_rng(12)
    draws = [POPULATIONS[population].draw(rng, 152) for _ in range(200)]
    spread = {
        method: np.std([fit_threshold(scores, 0.01, method).value for scores in draws])
        for method in ("quantile", "pot")
    }
    assert spread["pot"] < 0.7 * spread["quantile"]


def maps_of(rng: np.random.Generator, parts: int, alikeness: float) -> Floats:
    """Smooth maps (n, 24, 24) whose level differs from part to part, as light and focus do."""
    noise = rng.normal(size=(parts, 24, 24))
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), 2.0) for one in noise])
    return np.asarray(rng.gamma(alikeness, 1 / alikeness, (parts, 1, 1)) + 3.0 * smooth)


@pytest.mark.parametrize("alikeness", [30.0, 100.0])
@pytest.mark.parametrize(("parts", "rate"), [(40, 0.001), (152, 0.001), (152, 0.01)])
def test_the_share_of_pixels_of_new_parts_lies_in_the_interval(parts: int, rate: float, alikeness: float) -> None:
    rng = np.random.default_rng(13)
    new_pixels = np.sort(maps_of(rng, 10_000, alikeness), axis=None)
    limits = [fit_pixel_threshold(maps_of(rng, parts, alikeness), rate) for _ in range(100)]
    shares = [1 - np.searchsorted(new_pixels, limit.value, side="right") / new_pixels.size for limit in limits]
    inside = [limit.rate_low <= share <= limit.rate_high for limit, share in zip(limits, shares, strict=True)]
    assert sum(inside) >= 90
