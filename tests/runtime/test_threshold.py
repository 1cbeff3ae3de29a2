"""The limit keeps its promise: new good parts exceed it no more often than was said."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.errors import DatasetError, UsageError
from rdedge.threshold import (
    MIN_PARTS_FOR_POT,
    Method,
    fit_pixel_threshold,
    fit_threshold,
    fit_thresholds,
    parts_needed,
    refit_method,
    shortage,
)


def normal_scores(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize(("samples", "rate"), [(99, 0.01), (150, 0.02), (40, 0.1), (20, 0.01), (1, 0.5)])
def test_the_expected_rate_of_a_quantile_is_what_new_parts_show(samples: int, rate: float) -> None:
    rng = np.random.default_rng(5)
    trials = 4000
    held_out, new = rng.gamma(2.0, size=(trials, samples)), rng.gamma(2.0, size=trials)
    limits = [fit_threshold(values, rate, "quantile") for values in held_out]
    exceeded = np.mean([value > limit.value for value, limit in zip(new, limits, strict=True)])
    promised = limits[0].expected_rate
    assert abs(exceeded - promised) < 4 * np.sqrt(promised * (1 - promised) / trials)
    if samples >= parts_needed(rate):
        assert promised <= rate


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.02, 0.05, 0.1, 0.4])
def test_parts_needed_is_the_least_that_can_promise(rate: float) -> None:
    needed = parts_needed(rate)
    assert fit_threshold(np.arange(needed), rate, "quantile").expected_rate <= rate + 1e-12
    assert fit_threshold(np.arange(needed - 1), rate, "quantile").expected_rate > rate


def test_the_limit_is_the_lowest_that_keeps_the_promise() -> None:
    values = np.arange(199.0)
    limit = fit_threshold(values, 0.02, "quantile")
    assert (limit.value, limit.expected_rate, limit.parts) == (195.0, 4 / 200, 199)
    assert (limit.rule, limit.target_rate, limit.confidence) == ("quantile", 0.02, 0.95)


def test_too_few_parts_give_their_maximum_and_say_so() -> None:
    limit = fit_threshold(np.array([0.1, 0.3, 0.2]), 0.01)
    assert (limit.value, limit.rule) == (0.3, "quantile")
    assert limit.expected_rate == 0.25
    assert limit.rate_low == 0.0
    assert limit.rate_high == pytest.approx(1 - 0.025 ** (1 / 3))  # all three below a limit of this rate: 2.5 %


def test_ties_promise_only_what_lies_above_them() -> None:
    limit = fit_threshold(np.array([0.0] * 50 + [1.0] * 49), 0.1, "quantile")
    assert limit.value == 1.0
    assert limit.expected_rate == 1 / 100
    assert fit_threshold(np.full(99, 0.5), 0.1, "quantile").expected_rate == 1 / 100


@pytest.mark.parametrize(
    ("parts", "rate", "rule"),
    [
        (MIN_PARTS_FOR_POT - 1, 0.01, "quantile"),
        (MIN_PARTS_FOR_POT, 0.01, "pot"),
        (152, 0.01, "pot"),
        (999, 0.01, "pot"),
        (1000, 0.01, "quantile"),  # ten values above it
        (1000, 0.001, "pot"),
        (50, 0.1, "pot"),
        (50, 0.11, "quantile"),  # more than half of the tail
    ],
)
def test_auto_models_the_tail_where_few_values_lie_above_the_quantile(parts: int, rate: float, rule: Method) -> None:
    scores = normal_scores(parts)
    assert fit_threshold(scores, rate).rule == rule
    assert fit_threshold(scores, rate) == fit_threshold(scores, rate, rule)


def test_a_refit_on_fewer_parts_is_as_auto_or_as_was_chosen() -> None:
    scores = normal_scores(1200)
    assert refit_method(fit_threshold(scores, 0.01)) == "auto"  # a quantile, as there were enough parts
    assert refit_method(fit_threshold(scores[:150], 0.01)) == "auto"
    assert refit_method(fit_threshold(scores[:150], 0.01, "quantile")) == "quantile"
    assert refit_method(fit_threshold(scores[:20], 0.01, "quantile")) == "auto"


def test_one_odd_part_moves_a_modelled_limit_less_than_the_quantile() -> None:
    clean = normal_scores(150)
    odd = np.append(clean, 9.0)
    moved = {
        method: fit_threshold(odd, 0.01, method).value - fit_threshold(clean, 0.01, method).value
        for method in ("quantile", "pot")
    }
    assert 0 < moved["pot"] < 0.25 * moved["quantile"]


def test_a_modelled_limit_may_lie_beyond_all_parts() -> None:
    scores = normal_scores(60)
    limit = fit_threshold(scores, 0.001, "pot")
    assert limit.value > scores.max()
    assert limit.rate_low < limit.expected_rate < limit.rate_high
    assert limit.rate_high >= 1 - 0.025 ** (1 / 60)  # never surer than the parts alone allow


def test_equal_scores_have_no_tail() -> None:
    limit = fit_threshold(np.full(60, 0.5), 0.01, "pot")
    assert (limit.value, limit.rate_low) == (0.5, 0.0)


@pytest.mark.parametrize("method", ["quantile", "pot"])
def test_order_does_not_matter_and_the_values_stay(method: Method) -> None:
    scores = normal_scores(80).astype(np.float32)
    before = scores.copy()
    assert fit_threshold(scores, 0.01, method) == fit_threshold(np.sort(scores)[::-1], 0.01, method)
    assert (scores == before).all()


def test_a_score_equal_to_the_limit_is_good() -> None:
    """A limit is one of the float32 scores; comparing must not round it."""
    scores = np.random.default_rng(2).random(99).astype(np.float32)
    assert not (scores.astype(float) > fit_threshold(scores, 0.01, "quantile").value).any()


def test_both_limits_come_from_one_set_of_answers() -> None:
    rng = np.random.default_rng(3)
    maps, scores = rng.random((99, 8, 8), dtype=np.float32), rng.random(99, dtype=np.float32)
    for method in ("auto", "quantile"):
        image, pixel = fit_thresholds(maps, scores, 0.05, method)
        assert image == fit_threshold(scores, 0.05, method)
        assert pixel == fit_pixel_threshold(maps)
    assert (pixel.parts, pixel.target_rate, pixel.rule) == (99, 0.001, "quantile")
    assert np.mean(maps > pixel.value) <= 0.001
    assert pixel.rate_low <= np.mean(maps > pixel.value) <= pixel.rate_high


def test_pixels_of_one_part_are_not_counted_as_parts() -> None:
    """A hundred pixels that agree say no more than one: the interval is that of the parts."""
    rng = np.random.default_rng(4)
    agreeing = np.repeat(rng.normal(size=(60, 1, 1)), 400, axis=1)
    differing = rng.normal(size=(60, 400, 1))
    wide, narrow = (fit_pixel_threshold(maps, 0.05) for maps in (agreeing, differing))
    assert wide.rate_high - wide.rate_low > 5 * (narrow.rate_high - narrow.rate_low)


def test_a_shortage_of_parts_is_said_with_what_to_expect() -> None:
    few = fit_threshold(normal_scores(150), 0.001)
    text = shortage(few)
    assert text is not None
    assert text.startswith("0.10% false rejects need 999 held-out good parts, 150 were there: the threshold rests on a")
    assert f"{few.expected_rate:.2%} on average ({few.rate_low:.2%} to {few.rate_high:.2%})" in text
    assert "is their highest score" in str(shortage(fit_threshold(normal_scores(5), 0.01)))
    assert shortage(fit_threshold(normal_scores(98), 0.01)) is not None
    assert shortage(fit_threshold(normal_scores(99), 0.01)) is None


def test_no_parts_are_refused() -> None:
    with pytest.raises(DatasetError, match="no held-out good parts"):
        fit_threshold(np.array([]), 0.01)
    with pytest.raises(DatasetError, match="no held-out good parts"):
        fit_pixel_threshold(np.zeros((0, 8, 8), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_model_is_refused(value: float) -> None:
    with pytest.raises(DatasetError, match="not finite; train again"):
        fit_threshold(np.array([0.1, value]), 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(UsageError, match="share between 0 and 1"):
        fit_threshold(np.array([0.1]), rate)


def test_a_tail_that_cannot_be_modelled_is_refused() -> None:
    with pytest.raises(DatasetError, match=re.escape("need at least 25 held-out good parts, got 24; hold out more")):
        fit_threshold(normal_scores(24), 0.01, "pot")
    with pytest.raises(UsageError, match=re.escape("rate of 0.3 is not in the tail of 50 parts; use the quantile")):
        fit_threshold(normal_scores(50), 0.3, "pot")
