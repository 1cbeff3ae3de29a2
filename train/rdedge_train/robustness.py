"""What a shift of conditions on the line costs: the same parts, disturbed as the camera would see them, judged anew.

Each disturbance is done to the camera's picture, before the one preprocessing; parts that move take their masks along.
Strengths differ from part to part within the limits named, and are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.images import read_image
from rdedge.preprocess import preprocess, preprocess_mask
from rdedge_train.data import GOOD, LabelledPart, union_of_masks
from rdedge_train.evaluate import ConditionRow, JudgedParts, predict_chunks, summarise
from rdedge_train.subject import Subject
from rdedge_train.tolerance import BLUR_PX, BRIGHTNESS_SHARE, NOISE_LEVELS, blurred, brighter, moved, noisy, rotation

Image = NDArray[np.uint8]
SHIFT_SHARE = 0.02  # of the picture's sides, either way: what a jig leaves
ROTATION_DEG = 2.0
JPEG_QUALITY = 70
_SEED = 70


@dataclass(frozen=True, slots=True)
class Condition:
    """One disturbance: ``of_image`` changes grey values, ``motion`` gives a matrix (2, 3) of where pixels go."""

    name: str
    of_image: Callable[[Image, np.random.Generator, float], Image] | None = None
    motion: Callable[[tuple[int, int], np.random.Generator], NDArray[np.float64]] | None = None


def robustness(
    subject: Subject, parts: tuple[LabelledPart, ...], progress: Callable[[int, int], None] | None = None
) -> list[ConditionRow]:
    """One row a condition, the first undisturbed. ``parts``: usable ones, as ``evaluate`` judged them.

    Raises ImageError, BackendError.
    """
    rows = []
    for number, condition in enumerate(CONDITIONS):
        evaluation = summarise(subject, "", _judged_under(condition, subject, parts), [])
        overall = evaluation.overall
        rows.append(
            ConditionRow(
                condition=condition.name,
                image_auroc=overall.image_auroc,
                au_pro=overall.au_pro,
                false_reject_rate=evaluation.false_reject_rate,
                miss_rate=overall.miss_rate,
            )
        )
        if progress is not None:
            progress(number + 1, len(CONDITIONS))
    return rows


def _judged_under(condition: Condition, subject: Subject, parts: tuple[LabelledPart, ...]) -> JudgedParts:
    frames_u8 = np.empty((len(parts), *subject.input.size_hw, 3), np.uint8)
    masks: list[NDArray[np.bool_] | None] = []
    for i, part in enumerate(parts):
        image_bgr_u8, mask_u8 = disturbed(condition, part, i, subject.input.size_hw)
        frames_u8[i] = preprocess(image_bgr_u8, subject.input)[0]
        if part.defect == GOOD:
            masks.append(np.zeros(subject.input.size_hw, bool))
        else:
            masks.append(None if mask_u8 is None else preprocess_mask(mask_u8, subject.input))
    maps, scores = predict_chunks(subject, frames_u8)
    return JudgedParts(parts=parts, frames_u8=frames_u8, scores=scores, maps=maps, masks=masks)


def disturbed(
    condition: Condition, part: LabelledPart, index: int, size_hw: tuple[int, int]
) -> tuple[Image, NDArray[np.uint8] | None]:
    """The part's picture (H, W, 3) BGR and its mask (H, W) under a condition; both at the camera's size.

    ``index`` draws the strength; ``size_hw``: the model's input. Raises ImageError.
    """
    rng = np.random.default_rng([_SEED, index])
    image_bgr_u8 = read_image(part.path)
    mask_u8 = None if part.defect == GOOD else union_of_masks(part)
    height, width = image_bgr_u8.shape[:2]
    if condition.motion is not None:
        matrix = condition.motion((height, width), rng)
        image_bgr_u8 = moved(image_bgr_u8, matrix, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        mask_u8 = None if mask_u8 is None else moved(mask_u8, matrix, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
    if condition.of_image is not None:
        image_bgr_u8 = condition.of_image(image_bgr_u8, rng, max(height / size_hw[0], width / size_hw[1]))
    return image_bgr_u8, mask_u8


def _of_brightness(factor: float) -> Callable[[Image, np.random.Generator, float], Image]:
    return lambda image_u8, rng, shrink: brighter(image_u8, factor)


def _out_of_focus(image_u8: Image, rng: np.random.Generator, shrink: float) -> Image:
    return blurred(image_u8, BLUR_PX * max(shrink, 1.0))


def _as_jpeg(image_u8: Image, rng: np.random.Generator, shrink: float) -> Image:
    _, data = cv2.imencode(".jpg", image_u8, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.astype(np.uint8, copy=False)


def _grainy(image_u8: Image, rng: np.random.Generator, shrink: float) -> Image:
    return noisy(image_u8, NOISE_LEVELS, rng)


def _shifted(size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    x, y = rng.uniform(-SHIFT_SHARE, SHIFT_SHARE, 2) * (size_hw[1], size_hw[0])
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def _rotated(size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    return rotation(size_hw, float(rng.uniform(-ROTATION_DEG, ROTATION_DEG)))


CONDITIONS = (
    Condition("as taken"),
    Condition("20 % darker", _of_brightness(1.0 - BRIGHTNESS_SHARE)),
    Condition("20 % brighter", _of_brightness(1.0 + BRIGHTNESS_SHARE)),
    Condition("out of focus", _out_of_focus),
    Condition(f"JPEG quality {JPEG_QUALITY}", _as_jpeg),
    Condition(f"noise of {NOISE_LEVELS:g} levels", _grainy),
    Condition(f"shifted up to {SHIFT_SHARE:.0%}", motion=_shifted),
    Condition(f"turned up to {ROTATION_DEG:g} degrees", motion=_rotated),
)
