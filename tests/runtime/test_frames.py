"""A frame is a uint8 BGR picture or it is refused with what was got."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from rdedge.errors import ImageError
from rdedge.frames import Frame


def test_a_frame_is_frozen() -> None:
    frame = Frame(image_bgr_u8=np.zeros((2, 3, 3), np.uint8), index=0, captured_at_s=1.0, source="a.png")
    with pytest.raises(FrozenInstanceError):
        frame.index = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        (None, "NoneType"),
        ([[1]], "list"),
    ],
    ids=["grey", "alpha", "float", "no rows", "None", "list"],
)
def test_anything_else_is_refused_with_what_was_got(image: object, got: str) -> None:
    with pytest.raises(ImageError, match=rf"^a.png: expected a picture uint8 \(H, W, 3\) in BGR order, got {got}; "):
        Frame(image_bgr_u8=image, index=0, captured_at_s=1.0, source="a.png")  # type: ignore[arg-type]
