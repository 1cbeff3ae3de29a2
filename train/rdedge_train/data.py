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
from rdedge.images import decode_image, read_bytes, read_image, read_mask
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
    "read_usable",
    "split_good",
    "union_of_masks",
]
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Images read and preprocessed: ``frames_u8`` (n, H, W, 3) RGB, their files below ``root``, the hash of each."""

    root: Path
    paths: tuple[Path, ...]
    frames_u8: NDArray[np.uint8]
    file_sha256: tuple[bytes, ...]

    @property
    def sha256(self) -> str:
        """One hash over names and bytes."""
        digest = hashlib.sha256()
        for path, of_file in zip(self.paths, self.file_sha256, strict=True):
            digest.update(os.fsencode(path.relative_to(self.root)) + b"\n" + of_file)
        return digest.hexdigest()

    def only(self, paths: Sequence[Path]) -> Frames:
        """Those of these files, in the order given."""
        place = {path: i for i, path in enumerate(self.paths)}
        chosen = [place[path] for path in paths]
        return Frames(
            root=self.root,
            paths=tuple(paths),
            frames_u8=self.frames_u8[chosen],
            file_sha256=tuple(self.file_sha256[i] for i in chosen),
        )


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


def read_usable(
    root: Path, paths: Sequence[Path], spec: InputSpec, *, skip_bad: bool
) -> tuple[Frames, list[ImageError]]:
    """``read_frames`` of the usable ones, and why the others are not.

    Raises DatasetError that lists the bad ones unless ``skip_bad``, and if none is usable.
    """
    frames, bad = _read(root, paths, spec)
    if bad and (not skip_bad or not frames.paths):
        named = "; ".join(r.problem for r in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        remedy = "no usable image is left" if skip_bad else f"{bad[0].remedy} (--skip-bad goes on without bad images)"
        raise DatasetError(f"{len(bad)} of {len(paths)} images cannot be used: {named}{more}", remedy=remedy)
    return frames, bad


def read_frames(root: Path, paths: Sequence[Path], spec: InputSpec) -> Frames:
    """Read and preprocess images below ``root``, in the order given. Raises ImageError."""
    frames, bad = _read(root, paths, spec)
    if bad:
        raise bad[0]
    return frames


def _read(root: Path, paths: Sequence[Path], spec: InputSpec) -> tuple[Frames, list[ImageError]]:
    """Each file is opened once; a bad one leaves its place to the next."""

    def read(path: Path) -> tuple[NDArray[np.uint8], bytes] | ImageError:
        try:
            data = read_bytes(path)
            return preprocess(decode_image(data, path), spec)[0], hashlib.sha256(data).digest()
        except ImageError as exc:
            return exc if str(path) in exc.problem else ImageError(f"{path}: {exc.problem}", remedy=exc.remedy)

    frames_u8 = np.empty((len(paths), *spec.size_hw, 3), np.uint8)
    good: list[Path] = []
    digests: list[bytes] = []
    bad: list[ImageError] = []
    with ThreadPoolExecutor() as pool:
        for path, outcome in zip(paths, pool.map(read, paths), strict=True):
            if isinstance(outcome, ImageError):
                bad.append(outcome)
                continue
            frames_u8[len(good)], digest = outcome
            good.append(path)
            digests.append(digest)
    frames_u8 = frames_u8[: len(good)]
    return Frames(root=root, paths=tuple(good), frames_u8=frames_u8, file_sha256=tuple(digests)), bad


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
