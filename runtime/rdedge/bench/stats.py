"""What a series of latencies says, and how far the ratio of two of them can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.95
_BEYOND = 5  # samples beyond a percentile, on each side, below which its ratio is not given
_RESAMPLES = 1000
# 97.5 % of Student's t lies below, by degrees of freedom from 1 on; the last stands for all above.
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Series = NDArray[np.float64]


def samples_for(percentile: float) -> int:
    """How many samples there must be for one to lie beyond the percentile: 20 for p95, 1,000 for p99.9."""
    return round(100.0 / (100.0 - percentile))


def percentiles(samples: Sequence[float] | Series) -> list[float | None]:
    """The value at each of ``PERCENTILES``; None where there are too few samples to know it."""
    if not len(samples):
        return [None] * len(PERCENTILES)
    values = np.percentile(samples, PERCENTILES).tolist()
    return [v if len(samples) >= samples_for(p) else None for p, v in zip(PERCENTILES, values, strict=True)]


def jitter(samples: Sequence[float] | Series) -> float | None:
    """Mean absolute difference of one sample to the next, the quantity that RFC 3550 section 6.4.1 smooths."""
    return float(np.abs(np.diff(samples)).mean()) if len(samples) > 1 else None


def ratios(a: Sequence[Series], b: Sequence[Series], seed: int = 0) -> list[tuple[float, float, float] | None]:
    """Percentiles of ``b`` over those of ``a``, each a list of runs: (ratio, low, high), with ``CONFIDENCE`` between.

    None where fewer than 5 samples of a side lie beyond the percentile. Several runs of each: Student's t on the
    logarithms of each run's percentile, so that what differs between runs is in the interval. One run of a side: only
    what differs within; successive latencies resemble each other, so blocks of sqrt(n) successive samples are drawn
    instead of samples (circular block bootstrap, Politis and Romano 1992, percentile interval).
    """
    fewest = min(sum(map(len, a)), sum(map(len, b)))
    chosen = [p for p in PERCENTILES if fewest * (100.0 - p) / 100.0 >= _BEYOND - 1e-6]
    if not chosen:
        return [None] * len(PERCENTILES)
    between = _between_runs if min(len(a), len(b)) > 1 else _within_runs
    middle, low, high = between(a, b, chosen, seed)
    known = {p: (float(middle[i]), float(low[i]), float(high[i])) for i, p in enumerate(chosen)}
    return [known.get(p) for p in PERCENTILES]


def _between_runs(a: Sequence[Series], b: Sequence[Series], chosen: list[float], seed: int) -> tuple[Series, ...]:
    """Welch's interval with the fewest degrees of freedom it can have, those of the side with fewer runs."""
    of_a, of_b = (np.log([np.percentile(run, chosen) for run in side]) for side in (a, b))
    middle = of_b.mean(axis=0) - of_a.mean(axis=0)
    spread = np.sqrt(of_a.var(axis=0, ddof=1) / len(a) + of_b.var(axis=0, ddof=1) / len(b))
    freedom = min(len(a), len(b)) - 1
    reach = _STUDENT_975[min(freedom, len(_STUDENT_975)) - 1] * spread
    return np.exp(middle), np.exp(middle - reach), np.exp(middle + reach)


def _within_runs(a: Sequence[Series], b: Sequence[Series], chosen: list[float], seed: int) -> tuple[Series, ...]:
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [np.percentile(_resample(b, rng), chosen) / np.percentile(_resample(a, rng), chosen) for _ in range(_RESAMPLES)]
    )
    middle = np.percentile(np.concatenate(b), chosen) / np.percentile(np.concatenate(a), chosen)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return middle, low, high


def block_length(samples: int) -> int:
    """Samples of a block: longer than latencies resemble each other, and enough blocks to draw from."""
    return max(1, math.isqrt(samples))


def _resample(runs: Sequence[Series], rng: np.random.Generator) -> Series:
    pieces = []
    for run in runs:
        length = block_length(len(run))
        starts = rng.integers(len(run), size=-(-len(run) // length))
        index = (starts[:, None] + np.arange(length)).ravel()[: len(run)] % len(run)
        pieces.append(run[index])
    return np.concatenate(pieces)
