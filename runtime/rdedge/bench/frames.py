"""Frames to measure with: pictures of its own where no source is named, and any source at a pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.bundle import Bundle
from rdedge.errors import ImageError, SourceError
from rdedge.events import Event, tell
from rdedge.frames import Frame
from rdedge.sources import FrameSource, SourceInfo, is_camera, open_source

_CAMERA_HW = (1080, 1920)
_MOST_PICTURES = 8  # 6 MB each


def own_pictures(bundle: Bundle) -> tuple[list[NDArray[np.uint8]], str]:
    """Pictures (H, W, 3) BGR uint8 of a camera's size, and what they are.

    Held-out good parts of the bundle, enlarged to 1920x1080 (the region of interest, where there is one, in a picture
    that holds it), or noise on grey if the bundle has none. Raises BundleError.
    """
    roi_xywh = bundle.contract.input.roi_xywh
    x, y, w, h = (0, 0, _CAMERA_HW[1], _CAMERA_HW[0]) if roi_xywh is None else roi_xywh
    picture_hw = (max(_CAMERA_HW[0], y + h), max(_CAMERA_HW[1], x + w))
    size = f"{picture_hw[1]}x{picture_hw[0]}"
    rng = np.random.default_rng(0)
    if not bundle.contract.calibration.frames:
        noise = [rng.integers(96, 160, (*picture_hw, 3), np.uint8) for _ in range(2)]
        return noise, f"noise of {size}: the bundle holds no parts"
    pictures = []
    for part_rgb in bundle.calibration_frames()[:_MOST_PICTURES]:
        picture = np.full((*picture_hw, 3), 128, np.uint8)
        part_bgr = cv2.cvtColor(part_rgb, cv2.COLOR_RGB2BGR)
        picture[y : y + h, x : x + w] = cv2.resize(part_bgr, (w, h), interpolation=cv2.INTER_LINEAR)
        pictures.append(picture)
    return pictures, f"{len(pictures)} held-out good parts of the bundle, enlarged to {size}"


class OwnSource:
    """Pictures in turn, without end, each frame an array of its own as a camera's."""

    def __init__(self, pictures: list[NDArray[np.uint8]]):
        self.name = "frames of its own"
        self.skipped: list[ImageError] = []
        self.info = SourceInfo(size_hw=(pictures[0].shape[0], pictures[0].shape[1]))
        self._pictures = pictures

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            picture = self._pictures[index % len(self._pictures)].copy()
            yield Frame(image_bgr_u8=picture, index=index, captured_at_s=time.monotonic(), source=self.name)
            index += 1

    def close(self) -> None:
        """Nothing is held."""


class Feed:
    """The frames of every phase: a source's by its address, or pictures of its own (None)."""

    def __init__(self, bundle: Bundle, uri: str | None):
        """Raises SourceError, UsageError, BundleError."""
        self.pictures, own = own_pictures(bundle)
        self.is_live = uri is not None and is_camera(uri)
        self.described = own if uri is None else open_source(uri).name
        self._uri = uri

    def open(self) -> FrameSource:
        """From their begin; a camera's first fault ends them, where a line would wait for it."""
        return OwnSource(self.pictures) if self._uri is None else open_source(self._uri, on_event=_end_at_faults)


def _end_at_faults(event: Event) -> None:
    """Raises SourceError for an error; tells the rest."""
    if event.severity != "error":
        return tell(event)
    raise SourceError(f"{event.camera}: {event.text}", remedy="a measurement ends at a camera's first fault: try again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When the next frame is taken. Neither: as soon as the queue has room, or the camera gives one.

    ``after_verdict_s``: so long after the last one's verdict; ``interval_s``: by the clock, whatever the line does.
    """

    after_verdict_s: float | None = None
    interval_s: float | None = None


class PacedSource:
    """So many frames of a source at a pace; files that end begin anew. ``capture_ms``: by the frame's index."""

    def __init__(self, open_again: Callable[[], FrameSource], count: int, pace: Pace):
        self._open_again = open_again
        self._count = count
        self._pace = pace
        self._inner = open_again()
        self._is_closed = threading.Event()
        self._turns = threading.Semaphore(1)
        self._due_s: float | None = None
        self.name = self._inner.name
        self.skipped: list[ImageError] = []
        self.capture_ms: dict[int, float] = {}

    @property
    def info(self) -> SourceInfo:
        """See FrameSource."""
        return self._inner.info

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while index < self._count:
            first = index
            frames = iter(self._inner)
            while index < self._count:
                if index > first or index == 0:  # the turn was taken already where the files ended
                    self._wait()
                if self._is_closed.is_set():
                    return
                started = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                self.capture_ms[index] = (time.perf_counter() - started) * 1e3
                yield replace(frame, index=index)
                index += 1
            self.skipped += self._inner.skipped
            if index == first:
                raise SourceError(f"{self.name}: gives no frame", remedy="name a source with frames")
            if index < self._count:
                self._inner.close()
                self._inner = self._open_again()

    def verdict_is_out(self) -> None:
        """The next may come, where frames come one at a time."""
        self._turns.release()

    def _wait(self) -> None:
        if self._pace.after_verdict_s is not None:
            self._turns.acquire()
            if self._pace.after_verdict_s:
                self._is_closed.wait(self._pace.after_verdict_s)
        elif self._pace.interval_s is not None:
            now_s = time.monotonic()
            self._due_s = now_s if self._due_s is None else self._due_s + self._pace.interval_s
            self._is_closed.wait(max(0.0, self._due_s - now_s))

    def close(self) -> None:
        """See FrameSource.close."""
        self._is_closed.set()
        self._turns.release()
        self._inner.close()
