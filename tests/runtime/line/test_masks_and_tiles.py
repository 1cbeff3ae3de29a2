"""What is not judged changes nothing; a picture in tiles is judged as one; and both speak in the camera's pixels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdedge.errors import ImageError
from rdedge.frames import Frame
from rdedge.inspector import Inspector, Rules
from rdedge.judge import Verdict, judge, masked
from rdedge.line.masks import Mask
from rdedge.line.tiles import Tiling, starts, stitch

HW = (48, 64)
WHOLE = (0, 0, 64, 48)
Draw = Callable[..., NDArray[np.uint8]]


def judged_by(inspector: Inspector, picture: NDArray[np.uint8], rules: Rules) -> Verdict:
    frame = Frame(image_bgr_u8=picture, index=0, captured_at_s=0.0, source="a.png")
    return inspector.inspect_frame(frame, rules).verdict


def test_a_region_and_its_holes_are_kept_and_nothing_else() -> None:
    ignored_u8 = np.zeros(HW, np.uint8)
    ignored_u8[20:22, 30:32] = 128
    mask = Mask(roi_xywh=(8, 4, 40, 30), ignored=(((10, 10), (19, 10), (19, 14), (10, 14)),), ignored_u8=ignored_u8)
    expected = np.zeros(HW, np.bool_)
    expected[4:34, 8:48] = True
    expected[10:15, 10:20] = False
    expected[20:22, 30:32] = False
    assert np.array_equal(mask.keep(HW, WHOLE, HW), expected)


def test_a_mask_follows_the_bundles_region_and_the_maps_size() -> None:
    mask = Mask(roi_xywh=(100, 50, 64, 96))
    keep = mask.keep((200, 300), (100, 50, 128, 96), (24, 32))
    assert keep.shape == (24, 32) and keep[:, :16].all() and not keep[:, 16:].any()
    assert mask.keep((200, 300), (100, 50, 64, 48), (24, 32)).all(), "another place is drawn anew"


def test_a_map_pixel_is_judged_where_at_least_half_of_it_is() -> None:
    keep = Mask(roi_xywh=(0, 0, 10, 48)).keep(HW, WHOLE, (12, 16))
    assert keep[:, :2].all() and keep[:, 2].all() and not keep[:, 3:].any()
    assert not Mask(roi_xywh=(0, 0, 9, 48)).keep(HW, WHOLE, (12, 16))[:, 2].any()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Mask(roi_xywh=(60, 0, 5, 5)), r"the picture is 64x48, the camera's region of interest 5x5 at \(60, 0\)"),
        (Mask(ignored_u8=np.zeros((48, 65), np.uint8)), "the picture is 64x48, the mask's image 65x48"),
        (Mask(ignored=(((0, 0), (99, 0), (99, 99), (0, 99)),)), "the mask leaves nothing to judge"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask: Mask, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        mask.keep(HW, WHOLE, HW)


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1.0))
def test_score_and_regions_of_a_masked_map_agree_with_it(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    anomaly_map = rng.normal(size=HW).astype(np.float32)
    keep = rng.random(HW) < share
    keep[0, 0] = True
    verdict = judge(
        anomaly_map, float(anomaly_map.max()), image_threshold=1.0, pixel_threshold=0.5, roi_xywh=WHOLE, keep=keep
    )
    assert verdict.score == anomaly_map[keep].max() == verdict.anomaly_map.max() <= anomaly_map.max()
    assert verdict.graph_score == anomaly_map.max()
    assert np.array_equal(verdict.anomaly_map[keep], anomaly_map[keep])
    assert sum(region.area_px for region in verdict.regions) <= int((keep & (anomaly_map > 0.5)).sum())
    assert verdict.is_anomalous == (verdict.score > 1.0) == bool(verdict.regions)


def test_what_is_masked_is_in_no_region_even_of_a_map_that_is_all_high() -> None:
    keep = np.zeros(HW, np.bool_)
    keep[10:20, 10:30] = True
    whole, score = masked(np.full(HW, 9.0, np.float32), keep)
    verdict = judge(whole, score, image_threshold=1.0, pixel_threshold=0.5, roi_xywh=WHOLE, keep=keep)
    assert [(r.box_xywh, r.area_px) for r in verdict.regions] == [((10, 10, 20, 10), 200)]


def test_a_defect_that_is_ignored_is_good_and_one_that_is_not_is_found(bundle: Path, draw_part: Draw) -> None:
    mask = Mask(ignored=(((12, 20), (27, 20), (27, 35), (12, 35)),))
    with Inspector.open(bundle, backend="fake") as inspector:
        ignored = judged_by(inspector, draw_part((16, 24)), Rules(mask=mask))
        found = judged_by(inspector, draw_part((40, 24)), Rules(mask=mask))
    assert (
        not ignored.is_anomalous and ignored.score == pytest.approx(0.2) and ignored.graph_score == pytest.approx(0.8)
    )
    assert found.is_anomalous and [region.box_xywh for region in found.regions] == [(40, 24, 8, 8)]


def test_small_regions_and_other_thresholds_are_the_cameras_own(bundle: Path, draw_part: Draw) -> None:
    bad = draw_part((16, 24))
    with Inspector.open(bundle, backend="fake") as inspector:
        assert judged_by(inspector, bad, Rules(min_area_px=64)).is_anomalous
        small = judged_by(inspector, bad, Rules(min_area_px=65))
        assert not small.is_anomalous and small.regions == () and small.score == pytest.approx(0.8)
        assert not judged_by(inspector, bad, Rules(threshold=0.9)).is_anomalous
        assert judged_by(inspector, bad, Rules()).is_anomalous, "rules are of one camera"


@given(length=st.integers(1, 5000), tile=st.integers(1, 500), overlap=st.integers(0, 250))
def test_tiles_reach_from_edge_to_edge_and_overlap(length: int, tile: int, overlap: int) -> None:
    length, overlap = max(length, tile), min(overlap, tile // 2)
    first = starts(length, tile, overlap)
    assert first[0] == 0 and first[-1] + tile == length
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(first))
    assert len(first) == 1 or (len(first) - 1) * (tile - overlap) + overlap < length, "as few as that takes"


def test_a_stitched_map_is_the_picture_where_tiles_agree() -> None:
    whole = np.random.default_rng(0).normal(size=(100, 130)).astype(np.float32)
    tiling = Tiling(tile_wh=(48, 40), overlap_px=12)
    boxes = tiling.boxes((100, 130))
    assert len(boxes) == 16
    maps = [whole[y : y + h, x : x + w] for x, y, w, h in boxes]
    assert np.array_equal(stitch(maps, boxes, (100, 130)), whole)


def test_in_an_overlap_the_tile_in_which_a_pixel_lies_deeper_counts() -> None:
    boxes = [(0, 0, 10, 4), (6, 0, 10, 4)]
    maps = [np.full((4, 10), value, np.float32) for value in (1.0, 2.0)]
    assert stitch(maps, boxes, (4, 16)).tolist() == [[1.0] * 8 + [2.0] * 8] * 4


def test_a_defect_on_a_seam_is_one_region_in_the_sensors_pixels(
    write_bundle: Callable[..., Path], draw_part: Draw
) -> None:
    rules = Rules(tiling=Tiling(tile_wh=(64, 48), overlap_px=16))
    with Inspector.open(write_bundle(), backend="fake") as inspector:
        verdict = judged_by(inspector, draw_part((84, 60), size_hw=(144, 176)), rules)
        good = judged_by(inspector, draw_part(size_hw=(144, 176)), rules)
    assert verdict.anomaly_map.shape == (144, 176) and not good.is_anomalous
    assert [(r.box_xywh, r.area_px) for r in verdict.regions] == [((84, 60, 8, 8), 64)]


def test_tiles_that_the_model_shrinks_are_told_in_sensor_pixels_too(bundle: Path, draw_part: Draw) -> None:
    rules = Rules(tiling=Tiling(tile_wh=(128, 96), overlap_px=32))
    picture = draw_part(size_hw=(240, 320))
    picture[120:136, 200:216] = 51
    with Inspector.open(bundle, backend="fake") as inspector:
        verdict = judged_by(inspector, picture, rules)
    assert verdict.anomaly_map.shape == (120, 160)
    assert [(r.box_xywh, r.area_px) for r in verdict.regions] == [((200, 120, 16, 16), 256)]


def test_masks_and_tiles_go_together(bundle: Path, draw_part: Draw) -> None:
    tiling = Tiling(tile_wh=(64, 48), overlap_px=16)
    picture = draw_part((84, 60), size_hw=(144, 176))
    with Inspector.open(bundle, backend="fake") as inspector:
        assert not judged_by(inspector, picture, Rules(tiling=tiling, mask=Mask(roi_xywh=(0, 0, 80, 144)))).is_anomalous
        assert judged_by(inspector, picture, Rules(tiling=tiling, mask=Mask(roi_xywh=(80, 0, 80, 144)))).is_anomalous


def test_a_picture_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(ImageError, match="the picture is 63x48, smaller than a tile of 64x48"):
        Tiling(tile_wh=(64, 48), overlap_px=0).boxes((48, 63))
