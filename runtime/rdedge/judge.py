"""From anomaly map and score to a verdict: thresholds and regions; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A connected anomalous area, in pixels of the source picture."""

    box_xywh: tuple[int, int, int, int]
    area_px: int
    peak: float  # highest map value in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the line acts on.

    ``is_anomalous``: score above threshold, with a region of the smallest area that counts, and so often as the line's
    K-of-N rule asks. ``score``: the map's maximum where it is not masked. ``anomaly_map``: (h, w) float32 at the
    model's size, or at the size of all tiles together. ``regions``: highest peak first; empty where this frame is good.
    ``graph_score``: the maximum with what is masked, where something is.
    """

    is_anomalous: bool
    score: float
    threshold: float
    anomaly_map: NDArray[np.float32]
    regions: tuple[Region, ...]
    graph_score: float | None = None


def judge(
    anomaly_map: NDArray[np.float32],
    score: float,
    *,
    image_threshold: float,
    pixel_threshold: float,
    roi_xywh: tuple[int, int, int, int],
    keep: NDArray[np.bool_] | None = None,
    min_area_px: int = 0,
) -> Verdict:
    """One part's verdict. ``anomaly_map``: (h, w) float32; ``roi_xywh``: what it shows, in source pixels.

    ``keep``: (h, w) bool, False where nothing is judged; ``min_area_px``: a smaller region is no reason to reject.
    Raises BackendError if score or map is not finite: a NaN is below every threshold and would pass as good.
    """
    # The ends of the map: a NaN is both, and no array of the map's size is made to look at.
    if not all(map(math.isfinite, (score, float(anomaly_map.min()), float(anomaly_map.max())))):
        raise BackendError("the engine answered NaN or infinity", remedy="export the bundle or build the engine again")
    graph_score = None
    if keep is not None:
        graph_score = score
        anomaly_map, score = masked(anomaly_map, keep)
    is_anomalous = score > image_threshold
    regions: tuple[Region, ...] = ()
    if is_anomalous:
        found = find_regions(anomaly_map, image_threshold, pixel_threshold, roi_xywh, keep)
        regions = tuple(region for region in found if region.area_px >= min_area_px)
        is_anomalous = min_area_px == 0 or bool(regions)
    return Verdict(
        is_anomalous=is_anomalous,
        score=score,
        threshold=image_threshold,
        anomaly_map=anomaly_map,
        regions=regions,
        graph_score=graph_score,
    )


def masked(anomaly_map: NDArray[np.float32], keep: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    """The map with what is not kept set to the lowest kept value, and its maximum, which is the score as in the graph.

    Both (h, w); at least one pixel is kept. A threshold fitted without a mask stays safe: the maximum over fewer
    pixels is never higher, so no more good parts are rejected than promised.
    """
    lowest, highest, _, _ = cv2.minMaxLoc(anomaly_map, keep.view(np.uint8))
    return np.where(keep, anomaly_map, np.float32(lowest)), highest


def find_regions(
    anomaly_map: NDArray[np.float32],
    image_threshold: float,
    pixel_threshold: float,
    roi_xywh: tuple[int, int, int, int],
    keep: NDArray[np.bool_] | None = None,
) -> tuple[Region, ...]:
    """8-connected areas above the pixel threshold that reach above the image threshold, where the map is kept.

    Two levels, as in Canny's hysteresis: a region always explains the reject, and noise between the limits is not
    reported. Boxes are rounded outwards, so they cover the region and stay inside the picture.
    """
    low = min(pixel_threshold, image_threshold)
    is_above = anomaly_map > low
    if keep is not None:
        is_above &= keep
    count, labels, stats, _ = cv2.connectedComponentsWithStats(is_above.view(np.uint8), connectivity=8)
    x0, y0, roi_w, roi_h = roi_xywh
    map_h, map_w = anomaly_map.shape
    regions = []
    for label in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[label])
        inside = labels[y : y + h, x : x + w] == label
        _, peak, _, _ = cv2.minMaxLoc(anomaly_map[y : y + h, x : x + w], inside.view(np.uint8))
        if peak <= image_threshold:
            continue
        left, top = x * roi_w // map_w, y * roi_h // map_h
        right, bottom = -(-(x + w) * roi_w // map_w), -(-(y + h) * roi_h // map_h)
        regions.append(
            Region(
                box_xywh=(x0 + left, y0 + top, right - left, bottom - top),
                area_px=max(1, round(area * roi_w * roi_h / (map_w * map_h))),
                peak=peak,
            )
        )
    return tuple(sorted(regions, key=lambda region: -region.peak))
