"""Drift of light, focus and scores, told before rejects rise: frames of the line against held-out good parts.

Each watched quantity is turned into its rank u among the held-out parts' values, which is uniform on 0..1 for good
parts whatever the quantity's own distribution, and which no single defect can pull far. z = (u - 1/2) * sqrt(12) has
mean 0 and variance 1; its exponentially weighted mean (EWMA; Roberts, "Control chart tests based on geometric moving
averages", Technometrics 1959) is compared with a limit that also allows for the chance error of the reference itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.good_parts import QUANTILE_STEPS, Distribution, FrameStatistics

WEIGHT = 0.02  # of the newest frame: the mean looks back over some hundred frames
LIMIT_SIGMA = 5.0
MIN_SAMPLES = 20  # fewer held-out parts cannot tell drift from chance: the limit would be above what z can reach
_STEPS = np.linspace(0.0, 1.0, QUANTILE_STEPS + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMeasures:
    """``brightness``: mean grey level 0..255; ``contrast``: its standard deviation; ``sharpness``: mean absolute
    Laplacian of the grey picture, which falls when focus is lost."""

    brightness: float
    contrast: float
    sharpness: float


def measure_frame(frame_u8: NDArray[np.uint8]) -> FrameMeasures:
    """Of one preprocessed frame (h, w, 3) RGB, as the graph sees it."""
    grey = cv2.cvtColor(frame_u8, cv2.COLOR_RGB2GRAY)
    mean, std = cv2.meanStdDev(grey)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    sharpness = cv2.norm(laplacian, cv2.NORM_L1) / grey.size
    return FrameMeasures(brightness=float(mean[0, 0]), contrast=float(std[0, 0]), sharpness=float(sharpness))


def distribution_of(values: NDArray[np.floating]) -> Distribution:
    """Held-out values (n,), n >= 1, as the contract keeps them."""
    quantiles = np.quantile(np.asarray(values, np.float64), _STEPS)
    return Distribution(samples=len(values), quantiles=tuple(np.maximum.accumulate(quantiles).tolist()))


def frame_statistics(frames_u8: NDArray[np.uint8]) -> FrameStatistics:
    """Held-out frames (n, h, w, 3) RGB -> what the contract keeps of them."""
    measures = [measure_frame(frame_u8) for frame_u8 in frames_u8]
    return FrameStatistics(
        brightness=distribution_of(np.array([m.brightness for m in measures])),
        contrast=distribution_of(np.array([m.contrast for m in measures])),
        sharpness=distribution_of(np.array([m.sharpness for m in measures])),
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity that began to drift, or ceased to."""

    quantity: str
    is_drifting: bool
    text: str


class Chart:
    """The running mean of one quantity's z, and whether it is beyond its limit."""

    def __init__(self, quantity: str, reference: Distribution):
        self.quantity = quantity
        self.mean_z = 0.0
        self.is_drifting = False
        n = reference.samples
        self.limit_z = LIMIT_SIGMA * math.sqrt(WEIGHT / (2.0 - WEIGHT) + 1.0 / n) if n >= MIN_SAMPLES else math.inf
        self._reference = reference
        self._recent = math.nan  # the quantity itself, as slowly

    def add(self, value: float) -> Change | None:
        """One frame's value; a Change when the state changes. Ceases at half the limit."""
        u = float(np.interp(value, self._reference.quantiles, _STEPS))
        self.mean_z += WEIGHT * ((u - 0.5) * math.sqrt(12.0) - self.mean_z)
        self._recent = value if math.isnan(self._recent) else self._recent + WEIGHT * (value - self._recent)
        limit_z = self.limit_z * (0.5 if self.is_drifting else 1.0)
        if (abs(self.mean_z) > limit_z) == self.is_drifting:
            return None
        self.is_drifting = not self.is_drifting
        return Change(self.quantity, self.is_drifting, self._tell())

    def _tell(self) -> str:
        low, middle, high = (self._reference.quantiles[int(share * QUANTILE_STEPS)] for share in (0.05, 0.5, 0.95))
        direction = "risen" if self.mean_z > 0.0 else "fallen"
        verb = f"has {direction} to" if self.is_drifting else "is back at"
        return (
            f"{self.quantity} {verb} {self._recent:.4g}; held-out good parts had {middle:.4g} ({low:.4g} to {high:.4g})"
        )


class DriftWatch:
    """Charts of score, brightness, contrast and sharpness of one camera."""

    def __init__(self, frames: FrameStatistics, good_scores: Distribution):
        references = {
            "score": good_scores,
            "brightness": frames.brightness,
            "contrast": frames.contrast,
            "sharpness": frames.sharpness,
        }
        self.charts = {name: Chart(name, reference) for name, reference in references.items()}

    def add(self, frame_u8: NDArray[np.uint8], score: float) -> list[Change]:
        """A judged frame (h, w, 3) RGB with the graph's score of it -> what has changed by it."""
        measures = measure_frame(frame_u8)
        values = {
            "score": score,
            "brightness": measures.brightness,
            "contrast": measures.contrast,
            "sharpness": measures.sharpness,
        }
        changes = (chart.add(values[name]) for name, chart in self.charts.items())
        return [change for change in changes if change is not None]
