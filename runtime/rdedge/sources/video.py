"""A video file as a frame source, through OpenCV."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import ImageError, SourceError
from rdedge.frames import Frame
from rdedge.sources.base import SourceInfo

VIDEO_SUFFIXES = frozenset((".avi", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".webm", ".m4v"))
_SLACK_MS = 1000.0  # sound may outlast the pictures


class VideoSource:
    """Every frame of a video file, as fast as it is read."""

    def __init__(self, path: Path):
        """Raises SourceError if OpenCV cannot open it."""
        self.name = str(path)
        self.skipped: list[ImageError] = []
        self._counts_frames = path.suffix.lower() == ".avi"
        self._lock = threading.Lock()  # OpenCV crashes when a capture is released under a read
        self._capture = _open(path)
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._position_ms = 0.0
        height, width = self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT), self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        self._info = SourceInfo(size_hw=(int(height), int(width)), fps=self._fps if self._fps > 0.0 else None)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while (image := self._read()) is not None:
            yield Frame(image_bgr_u8=image, index=index, captured_at_s=time.monotonic(), source=self.name)
            index += 1
        if self._capture.isOpened() and (index == 0 or self._is_cut_after(index)):
            raise SourceError(
                f"{self.name}: ended after {index} of {max(self._expected, 1)} frames; it is truncated or damaged",
                remedy="copy it again",
            )

    @property
    def info(self) -> SourceInfo:
        """See FrameSource."""
        return self._info

    def close(self) -> None:
        """See FrameSource.close."""
        with self._lock:
            self._capture.release()

    def _read(self) -> NDArray[np.uint8] | None:
        """The next picture (H, W, 3) BGR; None at the end or once closed."""
        with self._lock:
            ok, image = self._capture.read()
            if not ok:
                return None
            self._position_ms = max(self._position_ms, self._capture.get(cv2.CAP_PROP_POS_MSEC))
            return image.astype(np.uint8, copy=False)

    def _is_cut_after(self, frames: int) -> bool:
        """Whether the file lacks frames it promises.

        AVI counts its frames. The count of the others is mostly duration times frame rate, an estimate that is far off
        where the rate varies, so it must fall short in frames and in time.
        """
        if frames >= self._expected or self._fps <= 0.0:
            return False
        duration_ms = self._expected / self._fps * 1e3
        return self._counts_frames or self._position_ms + _SLACK_MS < duration_ms


def _open(path: Path) -> cv2.VideoCapture:
    try:
        str(path).encode()
    except UnicodeEncodeError as exc:  # OpenCV crashes on it
        raise SourceError(f"{path}: its name is not UTF-8", remedy="rename the file") from exc
    # named, since OpenCV's fall-backs complain on stderr and try names as patterns of numbers; not every build has it
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY)
    if not capture.isOpened():
        raise SourceError(
            f"{path}: not a video that this OpenCV opens", remedy="convert it, e.g. to MJPEG in .avi or H.264 in .mp4"
        )
    return capture
