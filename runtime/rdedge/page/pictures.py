"""One part as the page draws it: facts, camera picture and heat map in one message."""

from __future__ import annotations

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from rdedge.inspector import Inspection
from rdedge.sinks.overlay import heat_colours
from rdedge.sinks.record import inspection_record

MAX_SIDE_PX = 1280
_QUALITY = 80
_FULL_OPACITY = float(heat_colours(np.full((1, 1), np.inf, np.float32), 1.0)[1].max())


def encode_part(
    inspection: Inspection, *, session: str, camera: str, roi_xywh: tuple[int, int, int, int] | None
) -> bytes:
    """4 bytes big endian: length of the JSON; the JSON; a JPEG of the frame; a PNG of the heat map with its opacity.

    The JSON holds the verdict's record, ``frame_wh`` (what the JPEG shows, in the camera's pixels, as regions are
    given), ``heat_xywh`` (what the heat map covers) and ``jpeg_bytes``. The JPEG has at most 1280 pixels a side. The
    hottest pixels of the PNG are opaque: how much of it is blended in is the viewer's choice.
    """
    image, verdict = inspection.frame.image_bgr_u8, inspection.verdict
    height, width = image.shape[:2]
    colours, opacity = heat_colours(verdict.anomaly_map, verdict.threshold)
    alpha = (opacity * (255.0 / _FULL_OPACITY)).round().astype(np.uint8)
    heat = _encoded(".png", np.dstack([colours, alpha]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    reduced, factor = _reduced(image)
    jpeg = _encoded(".jpg", reduced, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    facts = inspection_record(inspection, session=session, camera=camera) | {
        "frame_wh": (reduced.shape[1] * factor, reduced.shape[0] * factor),
        "heat_xywh": roi_xywh or (0, 0, width, height),
        "jpeg_bytes": len(jpeg),
    }
    head = msgspec.json.encode(facts)
    return len(head).to_bytes(4, "big") + head + jpeg + heat


def _reduced(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """At most MAX_SIDE_PX a side, by a whole factor, which is several times as fast; without what is left over."""
    height, width = image.shape[:2]
    factor = -(-max(height, width) // MAX_SIDE_PX)
    size_wh = max(1, width // factor), max(1, height // factor)
    if factor == 1:
        return image, 1
    whole = image[: size_wh[1] * factor, : size_wh[0] * factor]
    return cv2.resize(whole, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False), factor


def _encoded(suffix: str, picture: NDArray[np.uint8], settings: list[int]) -> bytes:
    ok, data = cv2.imencode(suffix, picture, settings)
    if not ok:  # cannot be: the size is ours
        raise RuntimeError(f"OpenCV cannot write {suffix} of {picture.shape}")
    return data.tobytes()
