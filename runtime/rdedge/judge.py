"""From anomaly map and score to a verdict: thresholds and regions; pure."""

from __future__ import annotations

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

    ``is_anomalous``: score above threshold. ``anomaly_map``: (h, w) float32 at the model's size. ``regions``: highest
    peak first; empty for a good part.
    """

    is_anomalous: bool
    score: float
    threshold: float
    anomaly_map: NDArray[np.float32]
    regions: tuple[Region, ...]


def judge(
    anomaly_map: NDArray[np.float32],
    score: float,
    *,
    image_threshold: float,
    pixel_threshold: float,
    roi_xywh: tuple[int, int, int, int],
) -> Verdict:
    """One part's verdict. ``anomaly_map``: (h, w) float32; ``roi_xywh``: what it shows, in source pixels.

    Raises BackendError if score or map is not finite: a NaN is below every threshold and would pass as good.
    """
    if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
        raise BackendError("the engine answered NaN or infinity", remedy="export the bundle or build the engine again")
    is_anomalous = score > image_threshold
    regions = find_regions(anomaly_map, image_threshold, pixel_threshold, roi_xywh) if is_anomalous else ()
    return Verdict(
        is_anomalous=is_anomalous,
        score=score,
        threshold=image_threshold,
        anomaly_map=anomaly_map,
        regions=regions,
    )


def find_regions(
    anomaly_map: NDArray[np.float32],
    image_threshold: float,
    pixel_threshold: float,
    roi_xywh: tuple[int, int, int, int],
) -> tuple[Region, ...]:
    """8-connected areas above the pixel threshold that reach above the image threshold.

    Two levels, as in Canny's hysteresis: a region always explains the reject, and noise between the limits is not
    reported. Boxes are rounded outwards, so they cover the region and stay inside the picture.
    """
    low = min(pixel_threshold, image_threshold)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((anomaly_map > low).astype(np.uint8), connectivity=8)
    x0, y0, roi_w, roi_h = roi_xywh
    map_h, map_w = anomaly_map.shape
    regions = []
    for label in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[label])
        inside = labels[y : y + h, x : x + w] == label
        peak = float(anomaly_map[y : y + h, x : x + w][inside].max())
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
