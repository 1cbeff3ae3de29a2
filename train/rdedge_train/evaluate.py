"""Accuracy of a run or a bundle on labelled parts: metrics by defect type, and the parts worth looking at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import BackendError, DatasetError, ImageError
from rdedge.fidelity import Metrics
from rdedge.good_parts import Threshold
from rdedge.text import printable
from rdedge_train.data import GOOD, LabelledPart, find_images, read_part_mask, read_usable
from rdedge_train.metrics import auroc, f1_at, localisation
from rdedge_train.report import JudgedPart
from rdedge_train.subject import Subject

_CHUNK = 16
_SHOWN_PARTS = 6


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of one defect type against all good parts (or of all types); None where the data cannot say."""

    defect: str
    parts: int
    parts_with_mask: int
    image_auroc: float | None
    pixel_auroc: float | None
    au_pro: float | None
    f1: float | None
    miss_rate: float | None


class ConditionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What all test parts give under one condition (rdedge_train.robustness), at the subject's threshold."""

    condition: str
    image_auroc: float | None
    au_pro: float | None
    false_reject_rate: float | None
    miss_rate: float | None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one evaluation. ``au_pro``: MVTec's, dataset-level, to a false positive rate of 0.3."""

    subject: str
    data: str
    good_parts: int
    defective_parts: int
    empty_masks: int
    false_reject_rate: float | None
    threshold: Threshold
    overall: Row
    by_defect: list[Row]
    robustness: list[ConditionRow]  # empty where not asked for
    skipped: list[str]

    def as_metrics(self) -> Metrics:
        """The figures that go into a contract."""
        return Metrics(
            images=self.good_parts + self.defective_parts,
            image_auroc=self.overall.image_auroc,
            pixel_auroc=self.overall.pixel_auroc,
            au_pro=self.overall.au_pro,
            false_reject_rate=self.false_reject_rate,
            miss_rate=self.overall.miss_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedParts:
    """Every part with what was answered: names and defects (n), scores (n,), maps and masks (n of (H, W))."""

    parts: tuple[LabelledPart, ...]
    frames_u8: NDArray[np.uint8]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: list[NDArray[np.bool_] | None]

    @property
    def is_defective(self) -> NDArray[np.bool_]:
        """(n,) True for parts of any defect type."""
        return np.array([p.defect != GOOD for p in self.parts], dtype=bool)


def find_parts(data: Path) -> tuple[LabelledPart, ...]:
    """The parts to evaluate on, without reading them. Raises DatasetError if there is none."""
    dataset = find_images(data)
    parts = dataset.test_parts
    if dataset.layout == "plain":
        parts = tuple(LabelledPart(path=p, defect=GOOD) for p in dataset.good_paths)
    if not parts:
        raise DatasetError(f"{data}: has no test parts", remedy="add test/good and test/<defect> folders")
    return parts


def evaluate(
    subject: Subject, data: Path, *, skip_bad: bool = False, progress: Callable[[int, int], None] | None = None
) -> tuple[Evaluation, JudgedParts]:
    """Judge the labelled parts of ``data`` (of a plain folder: all images, as good parts).

    Raises DatasetError, ImageError, BackendError.
    """
    parts = find_parts(data)
    frames, bad = read_usable(data, [p.path for p in parts], subject.input, skip_bad=skip_bad)
    kept, frames_u8 = set(frames.paths), frames.frames_u8
    parts = tuple(p for p in parts if p.path in kept)
    masks, bad_masks = _read_masks(parts, subject, skip_bad=skip_bad)
    maps, scores = predict_chunks(subject, frames_u8, progress)
    judged = JudgedParts(parts=parts, frames_u8=frames_u8, scores=scores, maps=maps, masks=masks)
    return summarise(subject, str(data), judged, [e.problem for e in (*bad, *bad_masks)]), judged


def predict_chunks(
    subject: Subject, frames_u8: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps (n, H, W) and scores (n,) of frames (n, H, W, 3). Raises BackendError if one is not finite."""
    maps, scores = [], []
    for start in range(0, len(frames_u8), _CHUNK):
        chunk_maps, chunk_scores = subject.predict(frames_u8[start : start + _CHUNK])
        maps.append(chunk_maps)
        scores.append(chunk_scores)
        if not (np.isfinite(chunk_maps).all() and np.isfinite(chunk_scores).all()):
            raise BackendError(f"{subject.name} answered NaN or infinity", remedy="train or export it again")
        if progress is not None:
            progress(start + len(chunk_scores), len(frames_u8))
    return np.concatenate(maps), np.concatenate(scores)


def _read_masks(
    parts: tuple[LabelledPart, ...], subject: Subject, *, skip_bad: bool
) -> tuple[list[NDArray[np.bool_] | None], list[ImageError]]:
    masks: list[NDArray[np.bool_] | None] = []
    bad = []
    for part in parts:
        try:
            masks.append(read_part_mask(part, subject.input))
        except ImageError as exc:
            if not skip_bad:
                raise ImageError(exc.problem, remedy=f"{exc.remedy} (--skip-bad goes on without it)") from exc
            bad.append(exc)
            masks.append(None)
    return masks, bad


def summarise(subject: Subject, data: str, judged: JudgedParts, skipped: list[str]) -> Evaluation:
    """All figures of parts already judged."""
    is_defective = judged.is_defective
    limit = subject.image_threshold.value
    # A defective part whose mask is empty says nothing about pixels: calling them all good would be a wrong label.
    is_empty = [d and m is not None and not m.any() for d, m in zip(is_defective, judged.masks, strict=True)]
    usable = np.array([m is not None and not e for m, e in zip(judged.masks, is_empty, strict=True)], dtype=bool)
    defects = np.array([p.defect for p in judged.parts])
    good_scores = judged.scores[~is_defective]
    return Evaluation(
        subject=printable(subject.name),
        data=printable(data),
        good_parts=int((~is_defective).sum()),
        defective_parts=int(is_defective.sum()),
        empty_masks=sum(map(bool, is_empty)),
        false_reject_rate=float((good_scores.astype(np.float64) > limit).mean()) if len(good_scores) else None,
        threshold=subject.image_threshold,
        overall=_row("all", judged, is_defective, usable, limit),
        by_defect=[_row(d, judged, defects == d, usable, limit) for d in sorted(set(defects.tolist()) - {GOOD})],
        robustness=[],
        skipped=[printable(problem) for problem in skipped],
    )


def _row(defect: str, judged: JudgedParts, chosen: NDArray[np.bool_], usable: NDArray[np.bool_], limit: float) -> Row:
    """``chosen``: the defective parts of this row; all good parts are its opposite."""
    is_good = ~judged.is_defective
    both = chosen | is_good
    scores, labels = judged.scores[both], chosen[both]
    has_both = bool(chosen.any() and is_good.any())
    with_pixels = np.flatnonzero(both & usable)
    maps = [judged.maps[i] for i in with_pixels]
    masks = [m for i in with_pixels if (m := judged.masks[i]) is not None]
    has_pixels = any(m.any() for m in masks) and not all(m.all() for m in masks)
    pixel_auroc, au_pro = localisation(maps, masks) if has_pixels else (None, None)
    return Row(
        defect=defect,
        parts=int(chosen.sum()),
        parts_with_mask=int((chosen & usable).sum()),
        image_auroc=auroc(scores, labels) if has_both else None,
        pixel_auroc=pixel_auroc,
        au_pro=au_pro,
        f1=f1_at(scores, labels, limit) if chosen.any() else None,
        miss_rate=float((judged.scores[chosen].astype(np.float64) <= limit).mean()) if chosen.any() else None,
    )


def parts_to_show(data: Path, judged: JudgedParts, limit: float) -> dict[str, list[JudgedPart]]:
    """The most doubtful parts, the worst and the best, under their headings for the report."""
    is_defective = judged.is_defective
    every = np.arange(len(judged.parts))
    by_score = every[np.argsort(judged.scores, kind="stable")]
    defective, good = by_score[is_defective[by_score]], by_score[~is_defective[by_score]]
    doubtful = every[np.argsort(np.abs(judged.scores - limit), kind="stable")][:_SHOWN_PARTS]
    headings = {
        "Most doubtful: scores nearest to the threshold": doubtful,
        "Worst: defects with the lowest scores": defective[:_SHOWN_PARTS],
        "Worst: good parts with the highest scores": good[::-1][:_SHOWN_PARTS],
        "Best: defects with the highest scores": defective[::-1][:_SHOWN_PARTS],
    }
    return {
        heading: [
            JudgedPart(
                name=judged.parts[i].path.relative_to(data).as_posix(),
                defect=judged.parts[i].defect,
                score=float(judged.scores[i]),
                frame_rgb_u8=judged.frames_u8[i],
                anomaly_map=judged.maps[i],
                mask=judged.masks[i],
            )
            for i in chosen
        ]
        for heading, chosen in headings.items()
        if len(chosen)
    }
