"""What lamp, lens, sensor and jig may change without a part being anomalous; the head is fitted on such copies too.

The head knows how good parts vary from its training parts alone, all taken within an hour. What never varied there
(grain of the sensor, another brightness) would be the surest sign of a defect, so each training part is shown to the
head a second time, disturbed. The student is not: it costs no epoch, and a defect that it cannot restore stays one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Tolerance = Literal["none", "light", "light+jig"]

BRIGHTNESS_SHARE = 0.2  # up or down
NOISE_LEVELS = 8.0  # grey levels, standard deviation; a small sensor in poor light
BLUR_PX = 1.0  # sigma in pixels of the model's input: the same loss of detail for every camera
_LEAST_BLUR_PX = 0.3  # OpenCV's kernel is a single pixel below
_JIG_SHIFT_SHARE = 0.01  # of the frame's sides, either way
_JIG_ROTATION_DEG = 1.0
_STREAM = 71  # of the random numbers: others of this seed draw the split and the batches


def disturbed_copies(
    frames_u8: NDArray[np.uint8], numbers: NDArray[np.int64], tolerance: Tolerance, seed: int
) -> NDArray[np.uint8]:
    """Frames (n, H, W, 3) -> as many, each disturbed within the tolerance as ``seed`` and its own number draw it."""

    def copy_of(frame_u8: Image, number: np.int64) -> Image:
        return _disturbed(frame_u8, tolerance, np.random.default_rng([seed, _STREAM, int(number)]))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(copy_of, frames_u8, numbers)))


def _disturbed(frame_u8: Image, tolerance: Tolerance, rng: np.random.Generator) -> Image:
    image_u8 = frame_u8
    if tolerance != "none":
        image_u8 = brighter(image_u8, rng.uniform(1.0 - BRIGHTNESS_SHARE, 1.0 + BRIGHTNESS_SHARE))
        if rng.random() < 0.5:
            image_u8 = blurred(image_u8, rng.uniform(_LEAST_BLUR_PX, BLUR_PX))
        image_u8 = noisy(image_u8, rng.uniform(0.0, NOISE_LEVELS), rng)
    if tolerance == "light+jig":
        shift = rng.uniform(-_JIG_SHIFT_SHARE, _JIG_SHIFT_SHARE, 2)
        matrix = rotation(frame_u8.shape[:2], rng.uniform(-_JIG_ROTATION_DEG, _JIG_ROTATION_DEG))
        matrix[:, 2] += shift * (frame_u8.shape[1], frame_u8.shape[0])
        image_u8 = moved(image_u8, matrix, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return image_u8


def brighter(image_u8: Image, factor: float) -> Image:
    """A lamp or an exposure that is off: every value times ``factor``, cut off at white."""
    return _to_u8(image_u8 * np.float32(factor))


def blurred(image_u8: Image, sigma_px: float) -> Image:
    """Out of focus."""
    return cv2.GaussianBlur(image_u8, (0, 0), sigma_px).astype(np.uint8, copy=False)


def noisy(image_u8: Image, levels: float, rng: np.random.Generator) -> Image:
    """Grain: Gaussian, of this standard deviation, each value by itself."""
    return _to_u8(image_u8 + rng.standard_normal(image_u8.shape, np.float32) * np.float32(levels))


def rotation(size_hw: tuple[int, ...], degrees: float) -> NDArray[np.float64]:
    """Matrix (2, 3) of a turn about the picture's middle."""
    height, width = size_hw
    return np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))


def moved(image_u8: Image, matrix: NDArray[np.float64], interpolation: int, border: int) -> Image:
    """The picture moved by ``matrix``, its size kept; ``interpolation`` and ``border`` are OpenCV's."""
    size_wh = image_u8.shape[1], image_u8.shape[0]
    return cv2.warpAffine(image_u8, matrix, size_wh, flags=interpolation, borderMode=border).astype(
        np.uint8, copy=False
    )


def _to_u8(values: NDArray[np.float32]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
