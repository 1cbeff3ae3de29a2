"""From a camera picture to the graph's frame: the one image code of training, calibration, evaluation and the line."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import ImageError


def preprocess(image_bgr_u8: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Crop, resize and reorder: (H, W, 3) BGR uint8 -> (1, h, w, 3) RGB uint8, C-contiguous, h and w as in ``spec``.

    Raises ImageError if the region of interest leaves the picture.
    """
    resized = _resize(_crop(image_bgr_u8, spec), spec.size_hw)
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)[np.newaxis].astype(np.uint8, copy=False)


def preprocess_mask(mask_u8: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.bool_]:
    """Ground-truth mask (H, W) uint8 -> (h, w) bool, the same crop; a pixel is defect where the mask is above 127.

    Nearest neighbour, so that a defect thinner than the shrink factor is thinned rather than averaged away.
    """
    defect = (_crop(mask_u8, spec) > 127).astype(np.uint8)
    height, width = spec.size_hw
    return cv2.resize(defect, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def region_of_interest(source_hw: tuple[int, int], spec: InputSpec) -> tuple[int, int, int, int]:
    """The region (x, y, w, h) in source pixels that the frame shows."""
    height, width = source_hw
    if spec.roi_xywh is None:
        return 0, 0, width, height
    x, y, w, h = spec.roi_xywh
    if x + w > width or y + h > height:
        raise ImageError(
            f"the picture is {width}x{height}, the region of interest {w}x{h} at ({x}, {y}) leaves it",
            remedy="use pictures of the size the model was trained on",
        )
    return x, y, w, h


def _crop(image_u8: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    x, y, w, h = region_of_interest(image_u8.shape[:2], spec)
    return image_u8[y : y + h, x : x + w]


def _resize(image_u8: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Shrinks by area (every source pixel counts, so a hair-thin scratch cannot fall between samples), grows linearly.

    Large pictures shrink by a whole number first, which OpenCV does faster than by a fraction, and fastest by halves,
    each of which rounds; at most one pixel of the result at the border is lost to the remainder. A strip may shrink in
    one direction and grow in the other: it shrinks first.
    """
    height, width = size_hw
    source_h, source_w = image_u8.shape[:2]
    factor = max(1, min(source_h // height, source_w // width))
    h, w = source_h // factor, source_w // factor
    top, left = (source_h - h * factor) // 2, (source_w - w * factor) // 2
    image_u8 = image_u8[top : top + h * factor, left : left + w * factor]
    while factor % 2 == 0:
        factor //= 2
        image_u8 = _resize_to(image_u8, (h * factor, w * factor), cv2.INTER_AREA)
    image_u8 = _resize_to(image_u8, (h, w), cv2.INTER_AREA)
    shrunk_hw = min(image_u8.shape[0], height), min(image_u8.shape[1], width)
    return _resize_to(_resize_to(image_u8, shrunk_hw, cv2.INTER_AREA), size_hw, cv2.INTER_LINEAR)


def _resize_to(image_u8: NDArray[np.uint8], size_hw: tuple[int, int], interpolation: int) -> NDArray[np.uint8]:
    if image_u8.shape[:2] == size_hw:
        return image_u8
    return cv2.resize(image_u8, size_hw[::-1], interpolation=interpolation).astype(np.uint8, copy=False)
