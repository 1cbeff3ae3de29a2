"""What a frame source is to the line, and what a camera is to the source that watches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rdedge.errors import ImageError
from rdedge.frames import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a source says of itself, at one moment.

    ``size_hw``: height and width in pixels, None where it is not known or each picture has its own; ``fps``: frames a
    second as the device promises; ``lost``: frames that the device, its driver or the network lost before they reached
    us; ``withheld``: frames that came and were no pictures of a part (black, frozen, damaged); ``restarts``: how often
    the camera was opened again; ``faults``: kinds of those present now, as in the events.
    """

    size_hw: tuple[int, int] | None = None
    fps: float | None = None
    lost: int = 0
    is_triggered: bool = False
    withheld: int = 0
    restarts: int = 0
    faults: tuple[str, ...] = ()


class FrameSource(Protocol):
    """Yields frames until it ends; iterated once, from one thread."""

    name: str
    skipped: list[ImageError]  # pictures left out, with the reason (files; a camera counts them in ``info``)

    @property
    def info(self) -> SourceInfo:
        """From any thread."""

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order. Raises SourceError or ImageError."""

    def close(self) -> None:
        """Release the device or file; may be called twice, and by another thread while a frame is being read.

        A read that waits for a frame should then end.
        """


class Camera(Protocol):
    """One connection to a device; ``WatchedSource`` makes a FrameSource of it. Opened by its constructor."""

    name: str

    @property
    def info(self) -> SourceInfo:
        """From any thread."""

    def read(self) -> Frame | None:
        """The next frame; waits some seconds at most. None: there will be no more, and that is no fault.

        Raises ImageError for a frame that cannot be used, after which the next may be read, and CameraFault where only
        opening it again may help.
        """

    def close(self) -> None:
        """As FrameSource.close."""
