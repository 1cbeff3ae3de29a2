"""Checks, splits and reads the images of a data folder (found by layouts); pixels go through rdedge.preprocess only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import DatasetError, ImageError
from rdedge.images import read_image, read_mask
from rdedge.preprocess import preprocess, preprocess_mask
from rdedge_train.layouts import GOOD, Dataset, LabelledPart, find_images

__all__ = [
    "GOOD",
    "Dataset",
    "Frames",
    "LabelledPart",
    "find_images",
    "read_frames",
    "read_part_mask",
    "split_good",
    "union_of_masks",
    "usable_images",
]
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Images read and preprocessed: ``frames_u8`` (n, H, W, 3) RGB, their files, and one hash over names and bytes."""

    frames_u8: NDArray[np.uint8]
    paths: tuple[Path, ...]
    sha256: str


def split_good(paths: Sequence[Path], held_out_share: float, seed: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Good images for training and held-out ones, drawn by seed; each in order of name.

    Raises DatasetError if fewer than two images are there.
    """
    if len(paths) < 2:
        where = f"{paths[0].parent}: " if paths else ""
        raise DatasetError(
            f"{where}{len(paths)} good image, training and threshold need at least one each",
            remedy="collect more good parts (a hundred is a fair start)",
        )
    n_held_out = min(len(paths) - 1, max(1, round(held_out_share * len(paths))))
    held_out = set(np.random.default_rng(seed).permutation(len(paths))[:n_held_out].tolist())
    return (
        tuple(p for i, p in enumerate(paths) if i not in held_out),
        tuple(p for i, p in enumerate(paths) if i in held_out),
    )


def usable_images(
    paths: Sequence[Path], spec: InputSpec, *, skip_bad: bool
) -> tuple[tuple[Path, ...], list[ImageError]]:
    """Reads every image once: the usable ones, and why the others are not.

    Raises DatasetError that lists the bad ones unless ``skip_bad``, and if none is usable.
    """

    def reason(path: Path) -> ImageError | None:
        try:
            preprocess(read_image(path), spec)
        except ImageError as exc:
            return exc if str(path) in exc.problem else ImageError(f"{path}: {exc.problem}", remedy=exc.remedy)
        return None

    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(reason, paths))
    bad = [r for r in reasons if r is not None]
    good = tuple(p for p, r in zip(paths, reasons, strict=True) if r is None)
    if bad and (not skip_bad or not good):
        named = "; ".join(r.problem for r in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        remedy = "no usable image is left" if skip_bad else f"{bad[0].remedy} (--skip-bad goes on without bad images)"
        raise DatasetError(f"{len(bad)} of {len(paths)} images cannot be used: {named}{more}", remedy=remedy)
    return good, bad


def read_frames(root: Path, paths: Sequence[Path], spec: InputSpec) -> Frames:
    """Read and preprocess images, in the order given. Raises ImageError."""
    height, width = spec.size_hw
    frames_u8 = np.empty((len(paths), height, width, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        for i, frame in enumerate(pool.map(lambda p: preprocess(read_image(p), spec), paths)):
            frames_u8[i] = frame[0]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(root)) + b"\n")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Frames(frames_u8=frames_u8, paths=tuple(paths), sha256=digest.hexdigest())


def read_part_mask(part: LabelledPart, spec: InputSpec) -> NDArray[np.bool_] | None:
    """The part's mask (H, W) bool at the model's size; all False for good parts; None where none is given.

    Raises ImageError, also where the mask's size is not its picture's.
    """
    if part.defect == GOOD:
        return np.zeros(spec.size_hw, dtype=bool)
    mask_u8 = union_of_masks(part)
    return None if mask_u8 is None else preprocess_mask(mask_u8, spec)


def union_of_masks(part: LabelledPart) -> NDArray[np.uint8] | None:
    """All masks of a part as one, 0 and 255, at its picture's size (H, W); None where none is given.

    Raises ImageError, also where a mask's size is not its picture's.
    """
    if not part.mask_paths:
        return None
    picture_hw = read_image(part.path).shape[:2]
    union_u8 = np.zeros(picture_hw, np.uint8)
    for path in part.mask_paths:
        mask_u8 = read_mask(path)
        if mask_u8.shape != picture_hw:
            raise ImageError(
                f"{path}: is {mask_u8.shape[1]}x{mask_u8.shape[0]}, its picture {picture_hw[1]}x{picture_hw[0]}",
                remedy="make the mask anew or remove it",
            )
        union_u8[mask_u8 > part.mask_above] = 255
    return union_u8
