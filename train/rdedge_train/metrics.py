"""Detection and localisation metrics, exact to the last tie: AUROC, AU-PRO, F1."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
_BLOCK_PIXELS = 1 << 22  # sorted at once: 16 MB
_SLICE = 1 << 18  # defective pixels searched for at once


def auroc(scores: Floats, is_defective: Bools) -> float:
    """Probability that a defective part scores above a good one, ties counting half; both arguments (n,).

    Raises ValueError for one class only, unequal lengths, NaN or infinity.
    """
    _check_scores(scores, is_defective)
    return _auroc(scores[~is_defective], scores[is_defective])


def roc_curve(scores: Floats, is_defective: Bools) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rate, from (0, 0) to (1, 1), one point for each distinct score.

    Raises ValueError as ``auroc`` does.
    """
    _check_scores(scores, is_defective)
    _, false_rejects, true_rejects = _counts_from_the_top(scores, is_defective)
    return false_rejects / false_rejects[-1], true_rejects / true_rejects[-1]


def best_f1(scores: Floats, is_defective: Bools) -> tuple[float, float]:
    """The highest F1 any threshold reaches, and that threshold: midway between two scores, the higher one if equal.

    Raises ValueError as ``auroc`` does, but needs no good part.
    """
    _check_scores(scores, is_defective, needs_good=False)
    distinct, false_rejects, true_rejects = _counts_from_the_top(scores, is_defective)
    f1 = 2 * true_rejects / (true_rejects + false_rejects + true_rejects[-1])
    best = int(f1.argmax())  # rejects the scores distinct[:best]; best > 0, as f1[0] is 0
    lowest_rejected = distinct[best - 1]
    if best == len(distinct):
        return float(f1[best]), float(np.nextafter(lowest_rejected, -np.inf))
    highest_passed = distinct[best]
    middle = highest_passed + (lowest_rejected - highest_passed) / 2
    # Between neighbouring floats the middle rounds to one of them, and a reject must score above the threshold.
    return float(f1[best]), float(middle if middle < lowest_rejected else highest_passed)


def f1_at(scores: Floats, is_defective: Bools, threshold: float) -> float:
    """F1 when a part is rejected for ``score > threshold``. Raises ValueError as ``best_f1`` does."""
    _check_scores(scores, is_defective, needs_good=False)
    # float64: NumPy would round the threshold to the scores' own type.
    is_rejected = scores.astype(np.float64) > threshold
    both = int((is_rejected & is_defective).sum())
    return 2 * both / (int(is_rejected.sum()) + int(is_defective.sum()))


def pixel_auroc(maps: Sequence[NDArray[np.float32]], masks: Sequence[Bools]) -> float:
    """AUROC over all pixels of all images; maps and masks (H, W), a mask True where the part is defective.

    Raises ValueError if there is no defective or no defect-free pixel, for unequal shapes, NaN and infinity.
    """
    return localisation(maps, masks)[0]


def au_pro(maps: Sequence[NDArray[np.float32]], masks: Sequence[Bools], fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to ``fpr_limit``, divided by it: 0..1.

    The curve: mean overlap of all 8-connected regions of all masks against the false positive rate over all
    defect-free pixels of all images, at every threshold, joined by straight lines (MVTec AD, Bergmann et al. 2021,
    "The MVTec Anomaly Detection Dataset", IJCV 129, section 5, and its evaluation code).
    Raises ValueError as ``pixel_auroc`` does, and for a limit outside 0..1.
    """
    return localisation(maps, masks, fpr_limit)[1]


def localisation(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[Bools], fpr_limit: float = 0.3
) -> tuple[float, float]:
    """``pixel_auroc`` and ``au_pro`` in one pass; exact, without building a curve.

    Both are sums over defective pixels, of which all that counts is how many defect-free ones score below and as high:
    for AUROC that is Mann-Whitney's U; for AU-PRO a pixel joins the overlap at the false positive rate of its own
    score, with weight 1 / (regions * pixels of its region). Raises like these.
    """
    if not 0.0 < fpr_limit <= 1.0:
        raise ValueError(f"fpr_limit is {fpr_limit}; expected above 0 and at most 1")
    _check_maps(maps, masks)
    scores = np.concatenate([anomaly_map[mask] for anomaly_map, mask in zip(maps, masks, strict=True)])
    weights, regions = _region_weights(masks)
    order = scores.argsort()  # so that neighbouring searches stay in the cache
    scores, weights = scores[order], weights[order]
    del order
    below, not_above, n = _ranks(scores, maps, masks)
    area = sum(
        float(weights[part] @ _area_right_of(1.0 - not_above[part] / n, 1.0 - below[part] / n, fpr_limit))
        for part in _slices(len(scores))
    )
    auroc = (int(below.sum()) + int(not_above.sum())) / (2 * n * len(scores))
    return auroc, min(1.0, area / (regions * fpr_limit))  # a sum of weights may round to above 1


def _region_weights(masks: Sequence[Bools]) -> tuple[NDArray[np.float64], int]:
    """1 / size of its region for each defective pixel, image by image and row by row; and the number of regions."""
    weights, regions = [], 0
    for mask in masks:
        labels_with_background, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        region_of_pixel = labels[mask]
        weights.append(1.0 / np.bincount(region_of_pixel, minlength=1)[region_of_pixel])
        regions += labels_with_background - 1
    return np.concatenate(weights), regions


def _ranks(
    scores: Floats, maps: Sequence[NDArray[np.float32]], masks: Sequence[Bools]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """For each of the ascending ``scores``, how many defect-free pixels score below it, and how many not above it;
    and how many there are. They are sorted block by block, so that memory does not grow with the number of maps.
    """
    below, not_above = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
    images_a_block = max(1, _BLOCK_PIXELS // max(m.size for m in maps))
    n = 0
    for start in range(0, len(maps), images_a_block):
        images = range(start, min(start + images_a_block, len(maps)))
        block = np.concatenate([maps[i][~masks[i]] for i in images])
        block.sort()
        for part in _slices(len(scores)):
            below[part] += np.searchsorted(block, scores[part], side="left")
            not_above[part] += np.searchsorted(block, scores[part], side="right")
        n += len(block)
    return below, not_above, n


def _slices(n: int) -> list[slice]:
    """Pieces of n values small enough that what is computed of them takes little memory."""
    return [slice(start, start + _SLICE) for start in range(0, n, _SLICE)]


def _area_right_of(start: NDArray[np.float64], end: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """For each pixel, the integral to ``limit`` of its step from 0 to 1 at its own false positive rate.

    Where defect-free pixels tie with it the step is a ramp from ``start`` to ``end``, as both join the curve at one
    threshold.
    """
    on_ramp = np.clip(limit, start, end) - start
    ramp_area = np.divide(on_ramp**2, 2.0 * (end - start), out=np.zeros_like(start), where=end > start)
    return np.asarray(ramp_area + np.maximum(limit - end, 0.0))


def _auroc(good: Floats, defective: Floats) -> float:
    """Mann-Whitney's U over its maximum; counted in whole numbers, so exact."""
    good = np.sort(good)
    below = np.searchsorted(good, np.sort(defective), side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(good, np.sort(defective), side="right").sum(dtype=np.int64)
    return (int(below) + int(not_above)) / (2 * len(good) * len(defective))


def _counts_from_the_top(
    scores: Floats, is_defective: Bools
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores (k,), descending; good and defective parts rejected (k+1,) with the first 0, 1 ... k of them."""
    distinct, group = np.unique(-scores.astype(np.float64), return_inverse=True)
    defective = np.bincount(group[is_defective], minlength=len(distinct))
    good = np.bincount(group[~is_defective], minlength=len(distinct))
    return -distinct, np.append(0, good.cumsum()), np.append(0, defective.cumsum())


def _check_scores(scores: Floats, is_defective: Bools, *, needs_good: bool = True) -> None:
    if scores.shape != is_defective.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and is_defective {is_defective.shape}; expected two of length n")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite")
    if not is_defective.any():
        raise ValueError("no defective part; expected at least one")
    if needs_good and is_defective.all():
        raise ValueError("no good part; expected at least one")


def _check_maps(maps: Sequence[NDArray[np.float32]], masks: Sequence[Bools]) -> None:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps and {len(masks)} masks; expected as many")
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"map {anomaly_map.shape} and mask {mask.shape}; expected equal shapes")
        if not np.isfinite(anomaly_map).all():
            raise ValueError("a pixel of a map is NaN or infinite")
    if not any(mask.any() for mask in masks):
        raise ValueError("no defective pixel in any mask; expected at least one")
    if all(mask.all() for mask in masks):
        raise ValueError("no defect-free pixel in any mask; expected at least one")
