"""What a frame source is to the line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from rdedge.errors import ImageError
from rdedge.frames import Frame


class FrameSource(Protocol):
    """Yields frames until it ends; iterated once, from one thread."""

    name: str
    skipped: list[ImageError]  # pictures left out, with the reason

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order. Raises SourceError or ImageError."""

    def close(self) -> None:
        """Release the device or file; may be called twice, and by another thread while a frame is being read.

        A read that waits for a frame should then end.
        """
