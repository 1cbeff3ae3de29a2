"""Is this a picture of a part? Black, saturated, frozen and resized frames are none. And does the camera keep pace?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdedge.frames import Frame

_SAMPLES_A_SIDE = 64  # so many rows and columns at least, and less than twice as many, are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """When a camera counts as faulty. The defaults suit free-running cameras of 1 to 200 frames a second.

    ``first_frame_s``: may pass until the first frame of a connection; ``silent_intervals`` frame times, but at least
    ``silent_s``, until it is silent; ``slow_factor`` times the frame time is slow. ``black_level``/``saturated_level``
    (0..255) with ``flat_share``: a frame is black if less than 1 - flat_share of its pixels are brighter.
    ``frozen_frames`` equal frames over ``frozen_s`` are a frozen camera. A fault is over after ``settle_frames`` good
    ones; one that stays for ``reopen_s`` makes the camera be opened again. Waits between attempts start at ``retry_s``
    and double up to ``retry_cap_s``; where password or settings are wrong they start at ``refused_retry_s``.
    """

    first_frame_s: float = 15.0
    silent_intervals: float = 10.0
    silent_s: float = 2.0
    slow_factor: float = 2.0
    black_level: int = 8
    saturated_level: int = 253
    flat_share: float = 0.995
    frozen_frames: int = 3
    frozen_s: float = 2.0
    settle_frames: int = 5
    reopen_s: float = 10.0
    retry_s: float = 0.5
    retry_cap_s: float = 30.0
    refused_retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class PictureFault:
    """Why a frame is not handed on; ``is_certain``: it is to be reported."""

    kind: str
    text: str
    is_certain: bool = True


class PictureCheck:
    """Looks at each frame of one camera, in order."""

    def __init__(self, limits: WatchLimits):
        self._limits = limits
        self._size_hw: tuple[int, int] | None = None
        self._last: Frame | None = None
        self._repeats = 0
        self._first_s = 0.0  # of the equal frames

    def fault_of(self, frame: Frame) -> PictureFault | None:
        """None: a picture. The first one sets the size that all others must have."""
        fault = self._flat(frame.image_bgr_u8) or self._frozen(frame) or self._resized(frame)
        if fault is None and self._size_hw is None:
            self._size_hw = _size_hw(frame)
        return fault

    def _flat(self, image_bgr_u8: NDArray[np.uint8]) -> PictureFault | None:
        """Every channel of nearly every pixel at one end of the scale: no light, a lens cap; too much light."""
        limits = self._limits
        sample = _sampled(image_bgr_u8)
        if _hold(sample <= limits.black_level, limits.flat_share):
            return PictureFault("black", f"the picture is black (mean level {sample.mean():.1f}); check light and lens")
        if _hold(sample >= limits.saturated_level, limits.flat_share):
            return PictureFault("saturated", "the picture is saturated; check exposure and light")
        return None

    def _frozen(self, frame: Frame) -> PictureFault | None:
        """The very pixels of the frame before: a live sensor's noise never repeats.

        The first repeats are withheld without a word, as a network camera may send a frame twice; a part's picture must
        be its own.
        """
        last, self._last = self._last, frame
        if last is None or not _are_equal(last.image_bgr_u8, frame.image_bgr_u8):
            self._repeats, self._first_s = 0, frame.captured_at_s
            return None
        self._repeats += 1
        lasted_s = frame.captured_at_s - self._first_s
        is_certain = self._repeats >= self._limits.frozen_frames and lasted_s >= self._limits.frozen_s
        text = f"the picture is frozen: {self._repeats + 1} equal frames in {lasted_s:.1f} s"
        return PictureFault("frozen", text, is_certain or frame.part_id is not None)

    def _resized(self, frame: Frame) -> PictureFault | None:
        if self._size_hw in (None, _size_hw(frame)):
            return None
        (height, width), (was_height, was_width) = _size_hw(frame), self._size_hw or (0, 0)
        return PictureFault(
            "resized", f"frames are {width}x{height} instead of {was_width}x{was_height}; restart if that is meant"
        )


class Pace:
    """The time between frames, against what the device promises or what it kept at first."""

    _FIRST, _FIRST_S = 20, 2.0

    def __init__(self, fps: float | None, slow_factor: float):
        """``fps`` None, not finite or not positive: the mean of the first counts, 20 frames and 2 s at least, as those
        that had piled up before come at once.
        """
        is_known = fps is not None and math.isfinite(fps) and fps > 0.0
        self.promised_s = 1.0 / fps if is_known and fps else None
        self.interval_s = self.promised_s or 0.0
        self.is_slow = False
        self._slow_factor = slow_factor
        self._frames = 0
        self._waited_s = 0.0

    def add(self, waited_s: float) -> None:
        """``waited_s``: how long the source took for one frame, without the time its taker kept it waiting."""
        if self.promised_s is None:
            self._frames += 1
            self._waited_s += waited_s
            self.interval_s = max(self.interval_s, waited_s)
            if self._frames >= self._FIRST and self._waited_s >= self._FIRST_S:
                self.promised_s = self.interval_s = self._waited_s / self._frames
            return
        self.interval_s += 0.05 * (waited_s - self.interval_s)  # settles within some 50 frames
        limit = self._slow_factor * (0.75 if self.is_slow else 1.0)
        self.is_slow = self.interval_s > limit * self.promised_s + 1e-3


def _size_hw(frame: Frame) -> tuple[int, int]:
    height, width = frame.image_bgr_u8.shape[:2]
    return height, width


def _sampled(image_bgr_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows and columns spread over the picture."""
    height, width = image_bgr_u8.shape[:2]
    return image_bgr_u8[:: max(1, height // _SAMPLES_A_SIDE), :: max(1, width // _SAMPLES_A_SIDE)]


def _hold(is_so: NDArray[np.bool_], share: float) -> bool:
    """Whether it is so in every channel of at least this share of the pixels; green alone mostly settles it."""
    return bool(is_so[..., 1].mean() >= share and is_so.all(axis=2).mean() >= share)


def _are_equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Compared whole only where the middle row is equal: with a sensor's noise, never."""
    middle = len(one) // 2
    return one.shape == other.shape and np.array_equal(one[middle], other[middle]) and np.array_equal(one, other)
