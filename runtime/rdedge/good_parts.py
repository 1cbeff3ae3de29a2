"""What held-out good parts say, as the contract keeps it: limits, and how quantities are spread."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from msgspec import Meta

from rdedge.strict import Count, Share, Strict

QUANTILE_STEPS = 20  # a Distribution has its quantiles in steps of 1 / 20

ThresholdRule = Literal["quantile", "pot"]


class Threshold(Strict, frozen=True):
    """A limit and how it was chosen (rdedge.threshold): a value above it is anomalous."""

    value: float
    rule: ThresholdRule
    target_rate: Share  # false rejects asked for
    expected_rate: Share  # what new good parts will show on average
    rate_low: Share  # interval of the rate that new good parts will show in the long run
    rate_high: Share
    confidence: Share  # that the rate lies in the interval
    parts: Count  # held-out good parts it was fitted on

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a threshold must be finite, got {self.value}")
        if self.rate_low > self.rate_high:
            raise ValueError(f"the interval of the rate is empty: {self.rate_low} to {self.rate_high}")


class Distribution(Strict, frozen=True):
    """How one quantity is spread over held-out good parts; what a line watches for drift."""

    samples: Annotated[int, Meta(ge=1)]
    quantiles: tuple[float, ...]  # from the lowest to the highest value, in even steps of probability

    def __post_init__(self) -> None:
        is_ascending = all(low <= high for low, high in pairwise(self.quantiles))
        if len(self.quantiles) != QUANTILE_STEPS + 1 or not is_ascending or not all(map(math.isfinite, self.quantiles)):
            raise ValueError(f"expected {QUANTILE_STEPS + 1} finite, ascending quantiles, got {self.quantiles}")


class FrameStatistics(Strict, frozen=True):
    """Held-out good parts as the graph sees them: light and focus (rdedge.line.drift measures both sides)."""

    brightness: Distribution
    contrast: Distribution
    sharpness: Distribution
