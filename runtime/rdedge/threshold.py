"""Thresholds from good parts alone: the one rule, for training, export, engine builds and the line."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rdedge.contract import Threshold
from rdedge.errors import DatasetError, UsageError

DEFAULT_FALSE_REJECT_RATE = 0.01
DEFAULT_PIXEL_RATE = 0.001  # share of a good part's pixels that may lie above the pixel threshold


def fit_threshold(good_values: NDArray[np.floating], target_rate: float) -> Threshold:
    """The limit that new good values exceed at most at ``target_rate``, on average.

    ``good_values``: (n,) scores (or map values) of held-out good parts. The limit is one of them: with k of n values
    above it, a new good value exceeds it with probability (k + 1) / (n + 1) (split conformal prediction; Vovk et al.,
    "Algorithmic Learning in a Random World", 2005), so k is the largest that keeps this within the target. Too few
    values for the target give their maximum, and ``expected_rate`` says what that promises.
    Raises DatasetError on no or non-finite values, UsageError on a rate outside 0..1.
    """
    if not 0.0 < target_rate < 1.0:
        raise UsageError(f"false-reject rate {target_rate}", remedy="use a share between 0 and 1, e.g. 0.01")
    ascending = np.sort(np.asarray(good_values, dtype=np.float64).ravel())
    n = len(ascending)
    if n == 0:
        raise DatasetError("no held-out good parts to fit a threshold on", remedy="hold out at least one good part")
    if not np.isfinite(ascending).all():
        raise DatasetError("scores of good parts are not finite", remedy="train again: the model has diverged")
    above = max(0, math.floor(target_rate * (n + 1) + 1e-9) - 1)
    value = float(ascending[n - 1 - above])
    actually_above = int(n - np.searchsorted(ascending, value, side="right"))
    return Threshold(
        value=value,
        rule="quantile",
        target_rate=target_rate,
        expected_rate=(actually_above + 1) / (n + 1),
        samples=n,
    )


def fit_thresholds(
    good_maps: NDArray[np.float32], good_scores: NDArray[np.float32], false_reject_rate: float
) -> tuple[Threshold, Threshold]:
    """Image and pixel threshold of one graph from its own answers to held-out good parts.

    ``good_maps``: (n, H, W); ``good_scores``: (n,). Raises like ``fit_threshold``.
    """
    return fit_threshold(good_scores, false_reject_rate), fit_threshold(good_maps, DEFAULT_PIXEL_RATE)


def parts_needed(target_rate: float) -> int:
    """How many held-out good parts can promise ``target_rate``."""
    return math.ceil(1.0 / target_rate - 1e-9) - 1
