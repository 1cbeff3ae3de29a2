"""What a camera does to a scene that stands still: noise, light, focus, motion and lost frames, each with its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.frames import Frame

NOISE_LIMIT = 2.0  # grey levels; more of it hides faint defects, and asks for light or a longer exposure
DRIFT_LIMIT = 2.0  # grey levels from the first frame to the last
FLICKER_LIMIT = 1.0  # grey levels, standard deviation of the frames' means about their trend
BLUR_LIMIT = 0.6  # 0 sharp to 1 blurred; see _blur
SHIFT_LIMIT_PX = 0.5
MOVING_LIMIT = 0.005  # share of the pixels
SATURATED_LIMIT = 0.25  # share of the pixels; what is white shows no defect
LOST_LIMIT = 0.01  # share of the frames
_MOVING_NOISES, _MOVING_LEVELS = 6.0, 8.0  # a pixel that varies by more than both is no noise
_LONGEST_SIDE = 512  # for the shift, which is found to a hundredth of these pixels
_SHIFT_SIGMA_PX = 2.0  # smooths edges, so that brightness is linear over shifts of a pixel or two
_EDGE_LEVELS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One quality: ``value`` against ``limit`` in ``unit``; ``remedy`` says what to do where it is not ok."""

    name: str
    value: float
    limit: float
    unit: str
    remedy: str

    @property
    def is_ok(self) -> bool:
        """Within the limit; a value that could not be measured (NaN) is not."""
        return self.value <= self.limit


class Stillness:
    """Takes frames of one still scene one after the other; keeps sums, not frames."""

    def __init__(self, first: Frame):
        self._first_u8 = _grey(first)
        self._last_u8: NDArray[np.uint8] | None = None
        self._first_small = _small(self._first_u8)
        self._gradients = np.stack([g.ravel() for g in np.gradient(self._first_small)[::-1]], axis=1)  # x, y
        self._normal = np.linalg.pinv(self._gradients.T @ self._gradients)
        self._sum = np.zeros(self._first_u8.shape, np.float64)
        self._sum_of_squares = np.zeros(self._first_u8.shape, np.float64)
        self._levels: list[float] = []
        self._shifts_px: list[float] = []
        self._times_s: list[float] = []
        self._repeats = 0
        self.add(first)

    def add(self, frame: Frame) -> None:
        """The next frame, of the same size."""
        grey_u8 = _grey(frame)
        level = float(grey_u8.mean())
        self._repeats += self._last_u8 is not None and np.array_equal(grey_u8, self._last_u8)
        self._last_u8 = grey_u8
        self._levels.append(level)
        self._times_s.append(frame.captured_at_s if frame.device_timestamp_s is None else frame.device_timestamp_s)
        about_first = grey_u8.astype(np.float64) - self._first_u8 - (level - self._levels[0])
        self._sum += about_first
        self._sum_of_squares += about_first**2
        self._shifts_px.append(self._shift_px(grey_u8))

    def _shift_px(self, grey_u8: NDArray[np.uint8]) -> float:
        """How far the scene lies from where it was at first: least squares of brightness along its gradients.

        Lucas & Kanade, "An Iterative Image Registration Technique", IJCAI 1981, one step for the whole picture. Noise
        without edges gives no shift, other than by phase correlation. Shifts of many pixels come out too small.
        """
        small = _small(grey_u8)
        change = small - self._first_small
        x, y = self._normal @ (self._gradients.T @ (change - change.mean()).ravel())
        return float(math.hypot(x, y) * self._first_u8.shape[1] / small.shape[1])

    def missing(self) -> int:
        """How many frames more would have come at the usual pace; one that is late and the next on time cancel out."""
        usual_s = float(np.median(np.diff(self._times_s)))
        if usual_s <= 0.0:
            return 0
        return max(0, round((self._times_s[-1] - self._times_s[0]) / usual_s) - len(self._times_s) + 1)

    def checks(self, lost: int) -> list[Check]:
        """All qualities; ``lost``: frames that did not reach us meanwhile."""
        count = len(self._levels)
        mean = self._first_u8 + self._sum / count
        variance = np.maximum(0.0, self._sum_of_squares - self._sum**2 / count) / (count - 1)
        noise = math.sqrt(float(np.median(variance)))
        moving = np.sqrt(variance) > max(_MOVING_NOISES * noise, _MOVING_LEVELS)
        slope, offset = np.polyfit(np.arange(count), self._levels, 1)
        trend = slope * np.arange(count) + offset
        rows: list[tuple[str, float, float, str, str]] = [
            ("temporal noise", noise, NOISE_LIMIT, "grey levels", "more light, a longer exposure, less gain"),
            ("exposure drift", abs(slope) * (count - 1), DRIFT_LIMIT, "grey levels", "automatic exposure and gain off"),
            ("flicker", float(np.std(self._levels - trend)), FLICKER_LIMIT, "grey levels", "steady light, e.g. DC"),
            ("blur", _blur(mean, noise / math.sqrt(count)), BLUR_LIMIT, "of 1", "focus the lens on a part"),
            ("shift", float(np.quantile(self._shifts_px, 0.95)), SHIFT_LIMIT_PX, "px", "fasten camera and part"),
            ("motion", float(moving.mean()), MOVING_LIMIT, "of the pixels", "nothing may move while this runs"),
            ("saturated", float((mean >= 254).mean()), SATURATED_LIMIT, "of the pixels", "a shorter exposure"),
            ("lost frames", lost / (count + lost), LOST_LIMIT, "of the frames", "a lower rate or a better cable"),
            ("repeated frames", self._repeats / (count - 1), 0.0, "of the frames", "this is no live camera, or frozen"),
        ]
        return [Check(name=n, value=float(v), limit=x, unit=u, remedy=r) for n, v, x, u, r in rows]


def _grey(frame: Frame) -> NDArray[np.uint8]:
    return cv2.cvtColor(frame.image_bgr_u8, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)


def _small(grey_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
    scale = min(1.0, _LONGEST_SIDE / max(grey_u8.shape))
    small = cv2.resize(grey_u8, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    return cv2.GaussianBlur(small, (0, 0), _SHIFT_SIGMA_PX).astype(np.float32)


def _blur(mean: NDArray[np.float64], noise: float) -> float:
    """How little another blur changes the edges, 0 sharp to 1 blurred; NaN where the scene has no edges.

    Crete et al., "The Blur Effect: Perception and Estimation with a New No-Reference Perceptual Blur Metric", SPIE
    2007, over edges clear of the noise.
    """
    worst = 0.0
    for axis, box in ((0, (1, 9)), (1, (9, 1))):
        edges = np.abs(np.diff(mean, axis=axis))
        blurred = np.abs(np.diff(cv2.blur(mean, box), axis=axis))
        is_edge = edges > max(_EDGE_LEVELS, 6.0 * noise)
        if is_edge.mean() < 1e-4:
            return math.nan
        total = edges[is_edge].sum()
        kept = np.minimum(edges, blurred)[is_edge].sum()
        worst = max(worst, float(kept / total))
    return worst
