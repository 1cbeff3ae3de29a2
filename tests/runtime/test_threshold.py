"""The limit keeps its promise: new good parts exceed it no more often than was said."""

from __future__ import annotations

import numpy as np
import pytest

from rdedge.errors import DatasetError, UsageError
from rdedge.threshold import fit_threshold, fit_thresholds, parts_needed


@pytest.mark.parametrize(("samples", "rate"), [(99, 0.01), (150, 0.02), (40, 0.1), (20, 0.01), (1, 0.5)])
def test_the_expected_rate_is_what_new_parts_show(samples: int, rate: float) -> None:
    rng = np.random.default_rng(5)
    trials = 4000
    held_out, new = rng.gamma(2.0, size=(trials, samples)), rng.gamma(2.0, size=trials)
    limits = [fit_threshold(values, rate) for values in held_out]
    exceeded = np.mean([value > limit.value for value, limit in zip(new, limits, strict=True)])
    promised = limits[0].expected_rate
    assert abs(exceeded - promised) < 4 * np.sqrt(promised * (1 - promised) / trials)
    if samples >= parts_needed(rate):
        assert promised <= rate


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.02, 0.05, 0.1, 0.4])
def test_parts_needed_is_the_least_that_can_promise(rate: float) -> None:
    needed = parts_needed(rate)
    assert fit_threshold(np.arange(needed), rate).expected_rate <= rate + 1e-12
    assert fit_threshold(np.arange(needed - 1), rate).expected_rate > rate


def test_the_limit_is_the_lowest_that_keeps_the_promise() -> None:
    values = np.arange(199.0)
    limit = fit_threshold(values, 0.02)
    assert (limit.value, limit.expected_rate, limit.samples) == (195.0, 4 / 200, 199)
    assert (limit.rule, limit.target_rate) == ("quantile", 0.02)


def test_too_few_parts_give_their_maximum_and_say_so() -> None:
    limit = fit_threshold(np.array([0.1, 0.3, 0.2]), 0.01)
    assert limit.value == 0.3
    assert limit.expected_rate == 0.25


def test_ties_promise_only_what_lies_above_them() -> None:
    limit = fit_threshold(np.array([0.0] * 50 + [1.0] * 49), 0.1)
    assert limit.value == 1.0
    assert limit.expected_rate == 1 / 100
    assert fit_threshold(np.full(99, 0.5), 0.1).expected_rate == 1 / 100


def test_order_and_shape_do_not_matter_and_the_values_stay() -> None:
    maps = np.random.default_rng(1).random((4, 5, 6)).astype(np.float32)
    before = maps.copy()
    assert fit_threshold(maps, 0.1) == fit_threshold(np.sort(maps.ravel())[::-1], 0.1)
    assert (maps == before).all()


def test_a_score_equal_to_the_limit_is_good() -> None:
    """A limit is one of the float32 scores; comparing must not round it."""
    scores = np.random.default_rng(2).random(99).astype(np.float32)
    assert not (scores.astype(float) > fit_threshold(scores, 0.01).value).any()


def test_both_limits_come_from_one_set_of_answers() -> None:
    rng = np.random.default_rng(3)
    maps, scores = rng.random((99, 8, 8), dtype=np.float32), rng.random(99, dtype=np.float32)
    image, pixel = fit_thresholds(maps, scores, 0.05)
    assert image == fit_threshold(scores, 0.05)
    assert (pixel.samples, pixel.target_rate) == (99 * 64, 0.001)
    assert np.mean(maps > pixel.value) <= 0.001


def test_no_parts_are_refused() -> None:
    with pytest.raises(DatasetError, match="no held-out good parts"):
        fit_threshold(np.array([]), 0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_model_is_refused(value: float) -> None:
    with pytest.raises(DatasetError, match="not finite; train again"):
        fit_threshold(np.array([0.1, value]), 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(UsageError, match="share between 0 and 1"):
        fit_threshold(np.array([0.1]), rate)
