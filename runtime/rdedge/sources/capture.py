"""Cameras that OpenCV reads by itself: one capture, its lock, and its timestamps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from rdedge.errors import CameraFault
from rdedge.frames import Frame
from rdedge.sources.base import SourceInfo
from rdedge.sources.clock import DeviceClock, GapCounter

_CLOSE_WAIT_S = 0.5
_USUAL_FPS, _MOST_BUFFERED, _STEADY = 25.0, 250, 5  # frames


class CaptureCamera:
    """A Camera over an open ``cv2.VideoCapture``."""

    def __init__(self, capture: cv2.VideoCapture, name: str, *, gone: Callable[[], CameraFault]):
        """``gone`` says why a read failed."""
        self.name = name
        self._capture = capture
        self._gone = gone
        self._lock = threading.Lock()  # OpenCV crashes when a capture is released under a read
        self._closing = False
        self._clock = DeviceClock()
        self._gaps = GapCounter()
        self._index = 0
        self._info = SourceInfo(size_hw=_size_hw(capture), fps=_fps(capture))

    @property
    def info(self) -> SourceInfo:
        """See Camera; OpenCV hides the drivers' own counts, so ``lost`` is what the timestamps show."""
        return replace(self._info, lost=self._gaps.lost)

    def read(self) -> Frame | None:
        """See Camera."""
        with self._lock:
            if self._closing:
                return None
            is_read, image = self._capture.read()
            arrived_s = time.monotonic()
            position_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC) if is_read else 0.0
            if self._closing:
                self._capture.release()
                return None
        if not is_read or image is None:
            raise self._gone()
        position_s = position_ms / 1e3
        if self._info.fps is not None and position_s > 0.0:
            self._gaps.add(position_s, self._info.fps)
        frame = Frame(
            image_bgr_u8=image.astype(np.uint8, copy=False),
            index=self._index,
            captured_at_s=arrived_s,
            source=self.name,
            device_timestamp_s=self._clock.to_monotonic_s(position_s, arrived_s) if position_s > 0.0 else None,
        )
        self._index += 1
        return frame

    def skip_buffered(self) -> None:
        """Drops what the decoder held back while it was opened: those frames are up to a second old.

        As long as they come faster than they were taken, the distance of arrival and timestamp shrinks.
        """
        interval_s = 1.0 / (self._info.fps or _USUAL_FPS)
        least_s, steady = math.inf, 0
        for _ in range(_MOST_BUFFERED):
            if steady == _STEADY or not self._capture.grab():
                return
            distance_s = time.monotonic() - self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            steady = 0 if distance_s < least_s - 0.5 * interval_s else steady + 1
            least_s = min(least_s, distance_s)

    def close(self) -> None:
        """See Camera; a read that is under way releases the capture when it returns."""
        self._closing = True
        if self._lock.acquire(timeout=_CLOSE_WAIT_S):
            try:
                self._capture.release()
            finally:
                self._lock.release()


def has_backend(backend: int) -> bool:
    """Whether this OpenCV was built with, e.g., ``cv2.CAP_FFMPEG``."""
    return backend in cv2.videoio_registry.getBackends()


def _size_hw(capture: cv2.VideoCapture) -> tuple[int, int] | None:
    height, width = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _fps(capture: cv2.VideoCapture) -> float | None:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.1 <= fps <= 1000.0 else None  # some streams give their 90 kHz clock instead
