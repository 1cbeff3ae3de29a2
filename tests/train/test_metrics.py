"""The metrics against slow implementations that walk over every threshold, against scikit-learn, and by property."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import label
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

import rdedge_train.metrics
from rdedge_train.metrics import au_pro, auroc, best_f1, f1_at, localisation, pixel_auroc, roc_curve

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]

MONOTONE = {
    "line": lambda x: 3.0 * x - 40.0,
    "cube": lambda x: (x - 5.0) ** 3,
    "root": lambda x: np.sqrt(x + 1.0),
}


def slow_au_pro(maps: Maps, masks: Masks, fpr_limit: float) -> float:
    """The definition, one threshold after the other."""
    regions = []
    for image, mask in enumerate(masks):
        labels, count = label(mask, structure=np.ones((3, 3)))
        regions += [(image, labels == k) for k in range(1, count + 1)]
    defect_free = sum(int((~mask).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.flatten()}, reverse=True):
        false_positives = sum(int((m[~k] >= threshold).sum()) for m, k in zip(maps, masks, strict=True))
        overlaps = [float((maps[image][region] >= threshold).mean()) for image, region in regions]
        points.append((false_positives / defect_free, sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > fpr_limit:
            y_limit = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            return (area + (fpr_limit - x0) * (y0 + y_limit) / 2) / fpr_limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / fpr_limit


def random_case(seed: int, distinct_scores: int | None) -> tuple[Maps, Masks]:
    """Four small images, the first without a defect; few distinct scores give many ties."""
    random = np.random.default_rng(seed)
    shape = (int(random.integers(5, 12)), int(random.integers(5, 12)))
    masks = [np.zeros(shape, dtype=np.bool_), *(random.random(shape) < p for p in (0.05, 0.2, 0.5))]
    masks[1][0, 0] = True
    maps = [(random.random(shape) + 0.4 * mask).astype(np.float32) for mask in masks]
    if distinct_scores is not None:
        maps = [np.floor(m * distinct_scores / 1.4).astype(np.float32) for m in maps]
    return maps, masks


@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("distinct_scores", [None, 1, 2, 7], ids=["no ties", "constant", "2 values", "7 values"])
@pytest.mark.parametrize("seed", range(4))
def test_au_pro_equals_the_definition(seed: int, distinct_scores: int | None, fpr_limit: float) -> None:
    maps, masks = random_case(seed, distinct_scores)
    assert au_pro(maps, masks, fpr_limit) == pytest.approx(slow_au_pro(maps, masks, fpr_limit), abs=1e-12)


def test_au_pro_of_perfect_useless_and_inverted_maps() -> None:
    _, masks = random_case(0, None)
    assert au_pro([k.astype(np.float32) for k in masks], masks) == pytest.approx(1.0)
    assert au_pro([np.zeros(k.shape, dtype=np.float32) for k in masks], masks, 0.3) == pytest.approx(0.15)
    assert au_pro([(~k).astype(np.float32) for k in masks], masks) == 0.0


def test_au_pro_counts_a_small_region_as_much_as_a_large_one() -> None:
    mask = np.zeros((10, 10), dtype=np.bool_)
    mask[0, 0] = True
    mask[4:10, 4:10] = True
    found_small = np.where(np.arange(100).reshape(10, 10) == 0, 1.0, 0.0).astype(np.float32)
    found_small[1, 0] = 0.5
    found_small[4:10, 4:10] = -1.0
    assert au_pro([found_small], [mask]) == pytest.approx(0.5)


def test_pixels_touching_at_a_corner_are_one_region() -> None:
    mask = np.diag([True, True, False, True])
    anomaly_map = np.diag([-1.0, -1.0, 0.0, 1.0]).astype(np.float32)
    assert au_pro([anomaly_map], [mask], 1.0) == pytest.approx(1 / 2)  # found: one of two regions, not one of three


@pytest.mark.parametrize("distinct_scores", [None, 1, 3], ids=["no ties", "constant", "3 values"])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_equals_sklearns(seed: int, distinct_scores: int | None) -> None:
    maps, masks = random_case(seed, distinct_scores)
    expected = roc_auc_score(np.concatenate(masks, axis=None), np.concatenate(maps, axis=None))
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)


def test_images_may_differ_in_size() -> None:
    (map_a, map_b), (mask_a, mask_b) = (parts[1:3] for parts in random_case(0, None))
    maps, masks = [map_a, map_b[:4, :3]], [mask_a, mask_b[:4, :3]]
    assert au_pro(maps, masks) == pytest.approx(slow_au_pro(maps, masks, 0.3), abs=1e-12)


def test_copies_of_large_sets_stay_bounded() -> None:
    random = np.random.default_rng(0)
    maps = [random.random((256, 256), dtype=np.float32) for _ in range(50)]
    masks = [np.roll(np.arange(256)[:, None] < np.arange(256), 7 * i, axis=0) for i in range(50)]  # half defective
    size = sum(m.nbytes for m in maps)
    tracemalloc.start()
    au_pro(maps, masks)
    pixel_auroc(maps, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * size  # 400 maps of 256 x 256 would take 0.6 GB


def some_maps() -> tuple[Maps, Masks]:
    return random_case(0, None)


def spoiled(value: float) -> Callable[[Maps, Masks], tuple[Maps, Masks]]:
    def spoil(maps: Maps, masks: Masks) -> tuple[Maps, Masks]:
        return [*maps[:-1], np.full_like(maps[-1], value)], masks

    return spoil


@pytest.mark.parametrize("metric", [au_pro, pixel_auroc])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda m, k: (m, [np.zeros_like(x) for x in k]), "no defective pixel", id="no defect"),
        pytest.param(lambda m, k: (m, [np.ones_like(x) for x in k]), "no defect-free pixel", id="all defect"),
        pytest.param(lambda m, k: (m[:-1], k), "3 maps and 4 masks", id="a map short"),
        pytest.param(lambda m, k: (m, [x[:, 1:] for x in k]), "expected equal shapes", id="other shape"),
        pytest.param(spoiled(np.nan), "NaN or infinite", id="nan"),
        pytest.param(spoiled(np.inf), "NaN or infinite", id="inf"),
        pytest.param(lambda m, k: ([], []), "no defective pixel", id="nothing"),
    ],
)
def test_unusable_maps_are_refused(
    metric: Callable[[Maps, Masks], float], spoil: Callable[[Maps, Masks], tuple[Maps, Masks]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(*spoil(*some_maps()))


@pytest.mark.parametrize("fpr_limit", [0.0, -0.1, 1.5, np.nan])
def test_limit_outside_0_to_1_is_refused(fpr_limit: float) -> None:
    with pytest.raises(ValueError, match="fpr_limit is"):
        au_pro(*some_maps(), fpr_limit)


# Whole scores in a small range, so that ties are common and monotone transforms exact.
CASES = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({defective for _, defective in rows}) == 2
)


def arrays(rows: list[tuple[int, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, is_defective = zip(*rows, strict=True)
    return np.array(scores, dtype=np.float64), np.array(is_defective)


@given(CASES)
def test_auroc_and_curve_equal_sklearns(rows: list[tuple[int, bool]]) -> None:
    scores, is_defective = arrays(rows)
    assert auroc(scores, is_defective) == pytest.approx(roc_auc_score(is_defective, scores), abs=1e-12)
    fpr, tpr, _ = sklearn_roc_curve(is_defective, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(scores, is_defective), (fpr, tpr), atol=1e-12)


@given(CASES)
def test_auroc_is_symmetric(rows: list[tuple[int, bool]]) -> None:
    scores, is_defective = arrays(rows)
    value = auroc(scores, is_defective)
    assert auroc(-scores, is_defective) == pytest.approx(1 - value, abs=1e-15)
    assert auroc(scores, ~is_defective) == pytest.approx(1 - value, abs=1e-15)
    assert auroc(scores[::-1], is_defective[::-1]) == value


@pytest.mark.parametrize("transform", MONOTONE.values(), ids=MONOTONE)
@given(rows=CASES)
def test_metrics_see_only_the_order_of_scores(
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]], rows: list[tuple[int, bool]]
) -> None:
    scores, is_defective = arrays(rows)
    moved = transform(scores)
    assert auroc(moved, is_defective) == auroc(scores, is_defective)
    assert best_f1(moved, is_defective)[0] == best_f1(scores, is_defective)[0]
    shape = (1, len(scores))
    before, after = ([s.reshape(shape).astype(np.float32)] for s in (scores, moved))
    assert au_pro(after, [is_defective.reshape(shape)]) == au_pro(before, [is_defective.reshape(shape)])


@given(CASES)
def test_best_f1_beats_every_threshold_and_is_reached_at_its_own(rows: list[tuple[int, bool]]) -> None:
    scores, is_defective = arrays(rows)
    value, threshold = best_f1(scores, is_defective)
    for t in (-1.0, *np.unique(scores)):
        assert f1_at(scores, is_defective, t) == pytest.approx(f1_score(is_defective, scores > t, zero_division=0))
        assert f1_at(scores, is_defective, t) <= value
    assert f1_at(scores, is_defective, threshold) == value


@pytest.mark.parametrize(
    ("is_defective", "value", "threshold"),
    [
        pytest.param([False, False, True, True], 1.0, 1.5, id="midway"),
        pytest.param([True, False, False, True], 2 / 3, 2.5, id="the higher of two as good"),
        pytest.param([True, True, False, True], 6 / 7, np.nextafter(0.0, -1.0), id="reject all"),
    ],
)
def test_best_threshold(is_defective: list[bool], value: float, threshold: float) -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    assert best_f1(scores, np.array(is_defective)) == (pytest.approx(value), threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_best_threshold_separates_neighbouring_floats(dtype: type[np.floating]) -> None:
    low = dtype(0.5)
    scores = np.array([low, np.nextafter(low, dtype(1))], dtype=dtype)
    is_defective = np.array([False, True])
    value, threshold = best_f1(scores, is_defective)
    assert value == f1_at(scores, is_defective, threshold) == 1.0


def test_a_score_equal_to_the_threshold_passes() -> None:
    scores, is_defective = np.array([1.0, 2.0]), np.array([False, True])
    assert f1_at(scores, is_defective, 2.0) == 0.0
    assert f1_at(scores, is_defective, 1.0) == 1.0


@pytest.mark.parametrize("metric", [auroc, roc_curve, best_f1, lambda s, d: f1_at(s, d, 0.5)])
@pytest.mark.parametrize(
    ("scores", "is_defective", "message"),
    [
        ([0.1, 0.2], [False, False], "no defective part"),
        ([0.1, np.nan], [False, True], "NaN or infinite"),
        ([0.1, 0.2, 0.3], [False, True], r"scores \(3,\) and is_defective \(2,\)"),
        ([], [], "no defective part"),
    ],
    ids=["good only", "nan", "lengths", "nothing"],
)
def test_unusable_scores_are_refused(
    metric: Callable[..., object], scores: list[float], is_defective: list[bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(np.array(scores), np.array(is_defective, dtype=np.bool_))


@pytest.mark.parametrize("metric", [auroc, roc_curve])
def test_curves_need_a_good_part(metric: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="no good part"):
        metric(np.array([0.1, 0.2]), np.array([True, True]))


def test_blocks_and_slices_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [random_case(seed, distinct) for seed in range(3) for distinct in (None, 4)]
    whole = [localisation(*case) for case in cases]
    monkeypatch.setattr(rdedge_train.metrics, "_BLOCK_PIXELS", 50)
    monkeypatch.setattr(rdedge_train.metrics, "_SLICE", 7)
    assert [localisation(*case) for case in cases] == [pytest.approx(one, abs=1e-14) for one in whole]
    for case in cases:
        assert localisation(*case) == (pixel_auroc(*case), au_pro(*case))
