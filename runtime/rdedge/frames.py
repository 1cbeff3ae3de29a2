"""A camera frame: pixels, number, time and origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdedge.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of one part.

    ``image_bgr_u8``: (H, W, 3) uint8, OpenCV's channel order; ``captured_at_s``: seconds of ``time.monotonic``;
    ``source``: where it came from (a file's path, a camera's address without its password); ``part_id``: the part's own
    name, from its trigger (None: the camera runs freely); ``device_timestamp_s``: the exposure by the camera's clock,
    mapped to ``time.monotonic`` (None: it has no clock that reaches us).
    """

    image_bgr_u8: NDArray[np.uint8]
    index: int
    captured_at_s: float
    source: str
    part_id: str | None = None
    device_timestamp_s: float | None = None

    def __post_init__(self) -> None:
        check_image(self.image_bgr_u8, self.source)


def check_image(image_bgr_u8: NDArray[np.uint8], source: str) -> None:
    """Raises ImageError unless this is (H, W, 3) uint8 with at least one pixel."""
    shape, dtype = getattr(image_bgr_u8, "shape", None), getattr(image_bgr_u8, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        got = f"{dtype} {shape}" if shape is not None else type(image_bgr_u8).__name__
        raise ImageError(
            f"{source}: expected a picture uint8 (H, W, 3) in BGR order, got {got}",
            remedy="convert it, e.g. with cv2.cvtColor; never guess a value range",
        )
