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
    """By area as far as whole numbers go, the rest linearly, by way of twice the size where a side still shrinks.

    So every source pixel counts, within an eighth of the others, and a hair-thin scratch cannot fall between samples;
    OpenCV's area by a fraction counts them alike, but takes several times as long. Its exact linear kind gives the same
    bits on every processor. A strip may shrink in one direction and grow in the other.
    """
    source_h, source_w = image_u8.shape[:2]
    height, width = size_hw
    factor = max(1, min(source_h // height, source_w // width))
    image_u8 = _shrink_whole(image_u8, factor, factor)
    # Only a strip has a whole number left: both sides at once would miss the halves of a 16:9 picture.
    image_u8 = _shrink_whole(image_u8, max(1, image_u8.shape[0] // height), max(1, image_u8.shape[1] // width))
    fine_h, fine_w = (2 * n if there > n else n for there, n in zip(image_u8.shape, size_hw, strict=False))
    return _resize_to(_resize_to(image_u8, (fine_h, fine_w), cv2.INTER_LINEAR_EXACT), size_hw, cv2.INTER_AREA)


def _shrink_whole(image_u8: NDArray[np.uint8], factor_h: int, factor_w: int) -> NDArray[np.uint8]:
    """Means of blocks, by halves as far as they go, which OpenCV does fastest and each of which rounds.

    At most one pixel of the result at the border is lost to the remainder.
    """
    h, w = image_u8.shape[0] // factor_h, image_u8.shape[1] // factor_w
    top, left = (image_u8.shape[0] - h * factor_h) // 2, (image_u8.shape[1] - w * factor_w) // 2
    image_u8 = image_u8[top : top + h * factor_h, left : left + w * factor_w]
    while factor_h % 2 == 0 and factor_w % 2 == 0:
        factor_h, factor_w = factor_h // 2, factor_w // 2
        image_u8 = _resize_to(image_u8, (h * factor_h, w * factor_w), cv2.INTER_AREA)
    return _resize_to(image_u8, (h, w), cv2.INTER_AREA)


def _resize_to(image_u8: NDArray[np.uint8], size_hw: tuple[int, int], interpolation: int) -> NDArray[np.uint8]:
    if image_u8.shape[:2] == size_hw:
        return image_u8
    return cv2.resize(image_u8, size_hw[::-1], interpolation=interpolation).astype(np.uint8, copy=False)
