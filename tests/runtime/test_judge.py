"""From map and score to a verdict: limits are exclusive, regions explain it, boxes lie in the source picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdedge.errors import BackendError
from rdedge.judge import Verdict, judge

WHOLE = (0, 0, 64, 48)


def map_of(*spots: tuple[int, int, int, int, float]) -> NDArray[np.float32]:
    """A map (48, 64) of 0.1 with rectangles x, y, w, h of a value."""
    anomaly_map = np.full((48, 64), 0.1, np.float32)
    for x, y, w, h, value in spots:
        anomaly_map[y : y + h, x : x + w] = value
    return anomaly_map


def judged(anomaly_map: NDArray[np.float32], roi_xywh: tuple[int, int, int, int] = WHOLE) -> Verdict:
    return judge(anomaly_map, float(anomaly_map.max()), image_threshold=0.5, pixel_threshold=0.3, roi_xywh=roi_xywh)


def test_a_good_part_has_no_regions() -> None:
    anomaly_map = map_of((10, 10, 5, 5, 0.5))
    verdict = judged(anomaly_map)
    assert not verdict.is_anomalous, "the limit itself is still good"
    assert verdict.regions == ()
    assert (verdict.score, verdict.threshold) == (0.5, 0.5)
    assert verdict.anomaly_map is anomaly_map


def test_a_reject_names_its_region() -> None:
    verdict = judged(map_of((10, 20, 5, 4, 0.75)))
    assert verdict.is_anomalous
    (region,) = verdict.regions
    assert (region.box_xywh, region.area_px, region.peak) == ((10, 20, 5, 4), 20, 0.75)


def test_the_highest_peak_comes_first_whatever_its_size() -> None:
    verdict = judged(map_of((0, 0, 20, 20, 0.625), (40, 30, 2, 2, 0.875), (40, 5, 3, 3, 0.75)))
    assert [region.peak for region in verdict.regions] == [0.875, 0.75, 0.625]


def test_a_region_reaches_out_to_the_lower_limit() -> None:
    (region,) = judged(map_of((10, 10, 20, 20, 0.375), (15, 15, 2, 2, 0.75))).regions
    assert (region.box_xywh, region.area_px) == ((10, 10, 20, 20), 400)


def test_noise_between_the_limits_is_not_reported() -> None:
    assert len(judged(map_of((10, 10, 5, 5, 0.75), (40, 30, 5, 5, 0.375))).regions) == 1


def test_a_pixel_limit_above_the_image_limit_hides_nothing() -> None:
    verdict = judge(map_of((10, 10, 5, 5, 0.625)), 0.625, image_threshold=0.5, pixel_threshold=0.9, roi_xywh=WHOLE)
    assert verdict.regions[0].box_xywh == (10, 10, 5, 5)


def test_corners_connect() -> None:
    assert len(judged(map_of((10, 10, 2, 2, 0.75), (12, 12, 2, 2, 0.75))).regions) == 1
    assert len(judged(map_of((10, 10, 2, 2, 0.75), (13, 10, 2, 2, 0.75))).regions) == 2


def test_a_score_without_a_place_is_a_reject_without_regions() -> None:
    verdict = judge(map_of(), 0.9, image_threshold=0.5, pixel_threshold=0.3, roi_xywh=WHOLE)
    assert verdict.is_anomalous and verdict.regions == ()


def test_boxes_are_in_source_pixels_within_the_region_of_interest() -> None:
    (region,) = judged(map_of((10, 20, 5, 4, 0.75)), (100, 200, 128, 96)).regions
    assert (region.box_xywh, region.area_px) == ((120, 240, 10, 8), 80)


def test_a_box_covers_its_region_in_a_smaller_picture_too() -> None:
    (region,) = judged(map_of((63, 47, 1, 1, 0.75)), (7, 9, 20, 15)).regions
    assert (region.box_xywh, region.area_px) == ((26, 23, 1, 1), 1)


@given(
    x=st.integers(0, 63), y=st.integers(0, 47), w=st.integers(1, 64), h=st.integers(1, 48),
    roi_xywh=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 9000), st.integers(1, 9000)),
)  # fmt: skip
def test_every_box_lies_in_the_region_of_interest_and_covers_its_pixels(
    x: int, y: int, w: int, h: int, roi_xywh: tuple[int, int, int, int]
) -> None:
    w, h = min(w, 64 - x), min(h, 48 - y)
    x0, y0, roi_w, roi_h = roi_xywh
    (region,) = judged(map_of((x, y, w, h, 0.75)), roi_xywh).regions
    left, top, width, height = region.box_xywh
    assert x0 <= left <= x0 + x * roi_w / 64 and y0 <= top <= y0 + y * roi_h / 48
    assert x0 + roi_w >= left + width >= x0 + (x + w) * roi_w / 64 - 1e-9
    assert y0 + roi_h >= top + height >= y0 + (y + h) * roi_h / 48 - 1e-9
    assert width >= 1 and height >= 1 and region.area_px >= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_a_good_part(value: float) -> None:
    for anomaly_map, score in ((map_of((3, 3, 1, 1, value)), 0.1), (map_of(), value)):
        with pytest.raises(BackendError, match="NaN or infinity; export the bundle"):
            judge(anomaly_map, score, image_threshold=0.5, pixel_threshold=0.3, roi_xywh=WHOLE)
