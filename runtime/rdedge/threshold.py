"""Thresholds from good parts alone: the one rule, for training, export, engine builds and the line.

Two methods. ``quantile`` takes one of the values and assumes nothing of their distribution; with few parts it is their
maximum, so that one odd part sets it. ``pot`` (peaks over threshold) fits a generalised Pareto distribution to the
highest values and reads the limit off it: a steadier limit from the same parts, which may lie beyond all of them.
``auto`` is ``pot`` where fewer than ten values would lie above the quantile and enough of them show the tail, else
``quantile``; benchmarks/thresholds.py has the evidence.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rdedge.errors import DatasetError, UsageError
from rdedge.good_parts import Threshold, ThresholdRule
from rdedge.tail import Floats, Tail, rate_interval, tail_size

Method = Literal["auto", "quantile", "pot"]
METHODS: tuple[Method, ...] = get_args(Method)
RULE_NAMES: dict[ThresholdRule, str] = {"quantile": "quantile", "pot": "peaks over threshold"}
DEFAULT_FALSE_REJECT_RATE = 0.01
DEFAULT_PIXEL_RATE = 0.001  # share of a good part's pixels that may lie above the pixel threshold
CONFIDENCE = 0.95  # of the interval of the false-reject rate
MIN_PARTS_FOR_POT = 25
_ENOUGH_ABOVE = 10  # values above a quantile that need no model of the tail
_RESAMPLINGS = 500


def fit_threshold(good_values: NDArray[np.floating], target_rate: float, method: Method = "auto") -> Threshold:
    """The limit that new good parts exceed at ``target_rate``.

    ``good_values``: (n,) scores of held-out good parts, one a part.

    ``quantile``: with k of n values above it, a new good value exceeds the limit with probability (k + 1) / (n + 1)
    (split conformal prediction; Vovk et al., "Algorithmic Learning in a Random World", 2005); k is the largest that
    keeps this within the target. Too few values for the target give their maximum, and ``expected_rate`` says what
    that promises. Its interval is exact; a bootstrap of so extreme a value would not be consistent.
    ``pot``: ``expected_rate`` is the bootstrap's mean. The interval spans the bootstrap's, which trusts the model, and
    what order statistics allow without one.
    Raises DatasetError on no, too few or non-finite values, UsageError on a rate outside 0..1 or outside the tail.
    """
    ascending = _checked(good_values, target_rate).astype(np.float64)
    n = len(ascending)
    if _rule(n, target_rate, method) == "quantile":
        value = _quantile(ascending, target_rate)
        above = int(n - np.searchsorted(ascending, value, side="right"))
        low, high = rate_interval(above, n, CONFIDENCE)
        return _threshold(value, "quantile", target_rate, (above + 1) / (n + 1), (low, high), n)
    tail = Tail.fit(ascending[None])
    value = float(tail.value_exceeded_at(target_rate)[0])
    rates = _bootstrapped_rates(ascending, tail, target_rate)
    low, high = rate_interval(int((ascending > value).sum()), n, CONFIDENCE)
    outside = (1.0 - CONFIDENCE) / 2.0
    modelled_low, modelled_high = np.quantile(rates, [outside, 1.0 - outside])
    interval = min(low, float(modelled_low)), max(high, float(modelled_high))
    return _threshold(value, "pot", target_rate, float(rates.mean()), interval, n)


def fit_pixel_threshold(good_maps: NDArray[np.floating], target_rate: float = DEFAULT_PIXEL_RATE) -> Threshold:
    """The limit that at most ``target_rate`` of the pixels of good parts exceed; a quantile, as pixels are many.

    ``good_maps``: (n, ...) maps of held-out good parts. Neighbouring pixels tell the same, so the interval is a
    bootstrap's over whole parts. Raises like ``fit_threshold``.
    """
    ascending = _checked(good_maps, target_rate)
    value = _quantile(ascending, target_rate)
    above = int(len(ascending) - np.searchsorted(ascending, value, side="right"))
    interval = _share_interval((good_maps.reshape(len(good_maps), -1) > value).mean(axis=1))
    return _threshold(value, "quantile", target_rate, (above + 1) / (len(ascending) + 1), interval, len(good_maps))


def fit_thresholds(
    good_maps: NDArray[np.float32], good_scores: NDArray[np.float32], false_reject_rate: float, method: Method = "auto"
) -> tuple[Threshold, Threshold]:
    """Image and pixel threshold of one graph from its own answers to held-out good parts.

    ``good_maps``: (n, H, W); ``good_scores``: (n,). Raises like ``fit_threshold``.
    """
    return fit_threshold(good_scores, false_reject_rate, method), fit_pixel_threshold(good_maps)


def refit_method(threshold: Threshold) -> Method:
    """How to fit a threshold again on other answers to good parts: as before, where ``auto`` was not the reason."""
    by_auto = _rule(threshold.parts, threshold.target_rate, "auto")
    return "quantile" if (threshold.rule, by_auto) == ("quantile", "pot") else "auto"


def parts_needed(target_rate: float) -> int:
    """How many held-out good parts can promise ``target_rate`` without a model of the tail."""
    return math.ceil(1.0 / target_rate - 1e-9) - 1


def shortage(threshold: Threshold) -> str | None:
    """What to tell of a held-out set too small for the rate asked of an image threshold; None: it is large enough."""
    needed = parts_needed(threshold.target_rate)
    if threshold.parts >= needed:
        return None
    how = "is their highest score" if threshold.rule == "quantile" else "rests on a model of their tail"
    return (
        f"{threshold.target_rate:.2%} false rejects need {needed} held-out good parts, {threshold.parts} were there: "
        f"the threshold {how}, and new good parts will show {threshold.expected_rate:.2%} on average "
        f"({threshold.rate_low:.2%} to {threshold.rate_high:.2%})"
    )


def _checked(good_values: NDArray[np.floating], target_rate: float) -> NDArray[np.floating]:
    """The values in ascending order."""
    if not 0.0 < target_rate < 1.0:
        raise UsageError(f"false-reject rate {target_rate}", remedy="use a share between 0 and 1, e.g. 0.01")
    ascending = np.sort(good_values, axis=None)
    if len(ascending) == 0:
        raise DatasetError("no held-out good parts to fit a threshold on", remedy="hold out at least one good part")
    if not np.isfinite(ascending).all():
        raise DatasetError("scores of good parts are not finite", remedy="train again: the model has diverged")
    return ascending


def _rule(parts: int, target_rate: float, method: Method) -> ThresholdRule:
    in_tail = 2.0 * target_rate * parts <= tail_size(parts)
    if method == "auto":
        few = target_rate * parts < _ENOUGH_ABOVE
        return "pot" if few and in_tail and parts >= MIN_PARTS_FOR_POT else "quantile"
    if method == "pot" and parts < MIN_PARTS_FOR_POT:
        raise DatasetError(
            f"peaks over threshold need at least {MIN_PARTS_FOR_POT} held-out good parts, got {parts}",
            remedy="hold out more good parts, or use the quantile",
        )
    if method == "pot" and not in_tail:
        raise UsageError(
            f"a false-reject rate of {target_rate:g} is not in the tail of {parts} parts", remedy="use the quantile"
        )
    return method


def _quantile(ascending: NDArray[np.floating], target_rate: float) -> float:
    n = len(ascending)
    above = max(0, math.floor(target_rate * (n + 1) + 1e-9) - 1)
    return float(ascending[n - 1 - above])


def _bootstrapped_rates(ascending: Floats, tail: Tail, target_rate: float) -> Floats:
    """(b,) The rates, by the fitted tail, of limits fitted in the same way to resampled values; always the same."""
    n = len(ascending)
    rng = np.random.default_rng(0)
    resampled = np.sort(ascending[rng.integers(0, n, (_RESAMPLINGS, n))], axis=1)
    limits = Tail.fit(resampled).value_exceeded_at(target_rate)
    in_body = 1.0 - np.searchsorted(ascending, limits, side="right") / n
    return np.where(limits < tail.start, in_body, tail.rate_above(np.maximum(limits, tail.start)))


def _share_interval(shares: Floats) -> tuple[float, float]:
    """Of the mean share of new parts, from the ``shares`` (n,) of known ones: a bootstrap of Student's t.

    (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, section 12.5.) Shares are skewed, few parts hold most
    of what is above; the plain bootstrap's interval is too narrow then. It knows no kind of part that it has not seen.
    """
    n, mean = len(shares), float(shares.mean())
    if n == 1:
        return 0.0, 1.0
    deviation = float(shares.std())
    times_drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), _RESAMPLINGS)
    means = times_drawn @ shares / n
    deviations = np.sqrt(np.maximum(times_drawn @ shares**2 / n - means**2, 0.0))
    is_spread = deviations > 1e-3 * deviation  # the others drew equal parts only and say nothing of the spread
    students_t = (means[is_spread] - mean) / deviations[is_spread] if is_spread.any() else np.zeros(1)
    outside = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(students_t, [outside, 1.0 - outside])
    return max(0.0, mean - float(high) * deviation), min(1.0, mean - float(low) * deviation)


def _threshold(
    value: float,
    rule: ThresholdRule,
    target_rate: float,
    expected_rate: float,
    interval: tuple[float, float],
    parts: int,
) -> Threshold:
    return Threshold(
        value=value,
        rule=rule,
        target_rate=target_rate,
        expected_rate=expected_rate,
        rate_low=interval[0],
        rate_high=interval[1],
        confidence=CONFIDENCE,
        parts=parts,
    )
