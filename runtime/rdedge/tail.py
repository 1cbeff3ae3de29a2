"""The tail of good parts' scores: the exact law of order statistics, and a generalised Pareto model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PRIOR_EXCESSES = 10.0  # weight of shape 0 against the sample's own; see Tail
_SHAPE_RANGE = -1.0, 0.9  # below, the density grows towards the end; above, the mean excess has no finite variance
_BISECTIONS = 60


def tail_size(samples: int) -> int:
    """How many of the highest values model the tail: a fifth, of many values 3 sqrt(n).

    Vehtari et al., "Pareto Smoothed Importance Sampling", JMLR 25, 2024, section 3.
    """
    return min(samples // 5, math.floor(3.0 * math.sqrt(samples)))


@dataclass(frozen=True, slots=True)
class Tail:
    """Generalised Pareto tails of b samples: above ``start`` (b,) lies ``share`` of each, with ``scale`` and ``shape``.

    Pickands, "Statistical Inference Using Extreme Order Statistics", Annals of Statistics 3, 1975. Fitted by
    probability-weighted moments (Hosking & Wallis, Technometrics 29, 1987): a closed form that cannot fail to converge.
    The shape is then drawn towards 0, that of the maxima of light-tailed values, as by ten more excesses that show it:
    of few excesses it is too uncertain. The scale is set so that the mean excess stays.
    """

    start: Floats
    scale: Floats
    shape: Floats
    share: float

    @classmethod
    def fit(cls, ascending: Floats) -> Tail:
        """``ascending``: (b, n) values, each row sorted, with tail_size(n) >= 2."""
        samples = ascending.shape[1]
        size = tail_size(samples)
        start = ascending[:, samples - size - 1]
        excess = ascending[:, samples - size :] - start[:, None]
        mean = excess.mean(axis=1)
        moment = (excess * (np.arange(size)[::-1] / (size - 1))).mean(axis=1)  # E[X (1 - F(X))], without bias
        gap = mean - 2.0 * moment  # 0: all excesses are equal
        shape = 2.0 - np.divide(mean, gap, out=np.full_like(mean, np.inf), where=gap > 0.0)
        shape = np.clip(size / (size + _PRIOR_EXCESSES) * np.maximum(shape, -10.0), *_SHAPE_RANGE)
        return cls(start=start, scale=mean * (1.0 - shape), shape=shape, share=size / samples)

    def value_exceeded_at(self, rate: float) -> Floats:
        """(b,) values that a new one exceeds at ``rate``, which is at most ``share``."""
        depth = math.log(self.share / rate)
        is_flat = self.shape == 0.0
        units = np.where(is_flat, depth, np.expm1(self.shape * depth) / np.where(is_flat, 1.0, self.shape))
        return np.asarray(self.start + self.scale * units)

    def rate_above(self, values: Floats) -> Floats:
        """The rates at which a new value exceeds ``values``, none of which lies below ``start``."""
        above_start = values - self.start
        units = np.divide(above_start, self.scale, out=np.full_like(above_start, np.inf), where=self.scale > 0.0)
        units = np.where(above_start > 0.0, units, 0.0)
        is_flat = self.shape == 0.0
        with np.errstate(divide="ignore"):  # beyond the end of a bounded tail: log 0
            logs = np.log1p(np.maximum(np.where(is_flat, 1.0, self.shape) * units, -1.0))
        return np.asarray(self.share * np.exp(-np.where(is_flat, units, logs / np.where(is_flat, 1.0, self.shape))))


def rate_interval(above: int, samples: int, confidence: float) -> tuple[float, float]:
    """Interval of the rate at which new values exceed a limit that ``above`` of ``samples`` values exceed.

    Of any continuous distribution, new values exceed the k-th highest of n at a rate with the law Beta(k, n - k + 1)
    (Wilks, Annals of Mathematical Statistics 12, 1941). The limit lies below the ``above``-th highest value and not
    below the next one; so its rate lies between theirs. Ties make the interval wider than needed, never too narrow.
    """
    outside = (1.0 - confidence) / 2.0
    low = 0.0 if above == 0 else _beta_quantile(outside, above, samples - above + 1)
    high = 1.0 if above == samples else _beta_quantile(1.0 - outside, above + 1, samples - above)
    return low, high


def _beta_quantile(probability: float, a: int, b: int) -> float:
    """Of Beta(a, b) with whole a and b, by bisection: P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a)."""
    n = a + b - 1
    hits = np.arange(a)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - hits[:-1]) - np.log(hits[:-1] + 1.0))])
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        fewer = np.exp(log_choose + hits * math.log(middle) + (n - hits) * math.log1p(-middle)).sum()
        low, high = (middle, high) if 1.0 - fewer < probability else (low, middle)
    return (low + high) / 2.0
