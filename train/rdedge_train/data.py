"""Finds, checks, splits and reads the images of a data folder; pixels go through rdedge.preprocess only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import DatasetError, ImageError
from rdedge.images import IMAGE_SUFFIXES, read_image, read_mask
from rdedge.preprocess import preprocess, preprocess_mask
from rdedge.text import printable

GOOD = "good"
_LAYOUT_REMEDY = "name a folder of good images, or one laid out like MVTec AD (train/good, test/<defect>, ground_truth)"
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPart:
    """A test image: its defect type (``good`` or a folder's name) and its mask, if it has one."""

    path: Path
    defect: str
    mask_path: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a data folder holds. ``layout`` ``plain``: every image is a good part and there is no test part."""

    root: Path
    layout: Literal["mvtec", "plain"]
    good_paths: tuple[Path, ...]
    test_parts: tuple[LabelledPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Images read and preprocessed: ``frames_u8`` (n, H, W, 3) RGB, their files, and one hash over names and bytes."""

    frames_u8: NDArray[np.uint8]
    paths: tuple[Path, ...]
    sha256: str


def find_images(root: Path) -> Dataset:
    """List a data folder without reading the images. Raises DatasetError."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", remedy=_LAYOUT_REMEDY)
    if (root / "train" / GOOD).is_dir():
        good = _image_files(root / "train" / GOOD)
        parts = tuple(_labelled(root, folder) for folder in _subfolders(root / "test"))
        dataset = Dataset(root=root, layout="mvtec", good_paths=good, test_parts=sum(parts, ()))
    else:
        if (root / "test").is_dir() or (root / "ground_truth").is_dir():
            raise DatasetError(f"{root}: has test or ground_truth but no train/{GOOD}", remedy=_LAYOUT_REMEDY)
        dataset = Dataset(root=root, layout="plain", good_paths=_image_files(root), test_parts=())
    if not dataset.good_paths:
        raise DatasetError(f"{root}: holds no good images", remedy=_LAYOUT_REMEDY)
    return dataset


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
    if part.mask_path is None:
        return None
    mask_u8 = read_mask(part.mask_path)
    picture_hw = read_image(part.path).shape[:2]
    if mask_u8.shape != picture_hw:
        raise ImageError(
            f"{part.mask_path}: is {mask_u8.shape[1]}x{mask_u8.shape[0]}, its picture {picture_hw[1]}x{picture_hw[0]}",
            remedy="make the mask anew or remove it",
        )
    return preprocess_mask(mask_u8, spec)


def _labelled(root: Path, folder: Path) -> tuple[LabelledPart, ...]:
    """Masks lie below ground_truth as the pictures below test, with ``_mask`` after the name."""
    truth = root / "ground_truth" / folder.name
    masks = {}
    if folder.name != GOOD and truth.is_dir():
        masks = {(p.parent.relative_to(truth), p.stem.removesuffix("_mask")): p for p in _image_files(truth)}
    return tuple(
        LabelledPart(path=p, defect=printable(folder.name), mask_path=masks.get((p.parent.relative_to(folder), p.stem)))
        for p in _image_files(folder)
    )


def _subfolders(folder: Path) -> list[Path]:
    return (
        sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.relative_to(folder)))
        if folder.is_dir()
        else []
    )


def _is_hidden(path: Path) -> bool:
    """Thumbnails, checkpoints and waste baskets of desktops and editors are no parts."""
    return any(name.startswith(".") for name in path.parts)


def _image_files(folder: Path) -> tuple[Path, ...]:
    try:
        next(folder.iterdir(), None)  # rglob says nothing of a folder that may not be read
        files = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return tuple(sorted(p for p in files if not _is_hidden(p.relative_to(folder))))
    except OSError as exc:
        raise DatasetError(
            f"{folder}: cannot be read ({exc.strerror})", remedy="check the path and its permissions"
        ) from exc
