"""Where a camera's picture is judged: region of interest and ignored areas, in its pixels, as a mask of the map."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import ImageError
from rdedge.images import read_mask

Polygon = tuple[tuple[int, int], ...]


class Mask:
    """What is judged of a picture."""

    def __init__(
        self,
        *,
        roi_xywh: tuple[int, int, int, int] | None = None,
        ignored: tuple[Polygon, ...] = (),
        ignored_u8: NDArray[np.uint8] | None = None,
    ):
        """Of a picture (H, W) is judged what lies inside ``roi_xywh`` (None: all of it), in none of the ``ignored``
        polygons (points x, y) and not where ``ignored_u8`` (H, W) is above 127."""
        self._roi_xywh = roi_xywh
        self._ignored = ignored
        self._ignored_u8 = ignored_u8
        self._drawn: tuple[object, NDArray[np.bool_]] | None = None  # the last; pictures of a camera are of one size

    def keep(
        self, source_hw: tuple[int, int], shown_xywh: tuple[int, int, int, int], map_hw: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """(h, w) bool of a map that shows ``shown_xywh`` of a picture (H, W): True where it is judged.

        A map pixel is judged where at least half of it is. The map is blurred: what is ignored still reaches some
        pixels beyond its border, so draw it a little larger. Raises ImageError if the mask does not fit the picture or
        leaves nothing of it.
        """
        place = (source_hw, shown_xywh, map_hw)
        if self._drawn is None or self._drawn[0] != place:
            x, y, w, h = shown_xywh
            kept_u8 = self._draw(source_hw)[y : y + h, x : x + w]
            keep = cv2.resize(kept_u8, map_hw[::-1], interpolation=cv2.INTER_AREA) >= 128
            if not keep.any():
                raise ImageError("the mask leaves nothing to judge", remedy="ignore less, or correct roi_xywh")
            self._drawn = place, keep
        return self._drawn[1]

    def _draw(self, source_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """(H, W): 255 where judged."""
        height, width = source_hw
        kept_u8 = np.full(source_hw, 255, np.uint8)
        if self._roi_xywh is not None:
            x, y, w, h = self._roi_xywh
            if x + w > width or y + h > height:
                raise ImageError(
                    f"the picture is {width}x{height}, the camera's region of interest {w}x{h} at ({x}, {y}) leaves it",
                    remedy="correct roi_xywh, or the camera's resolution",
                )
            kept_u8[:] = 0
            kept_u8[y : y + h, x : x + w] = 255
        for polygon in self._ignored:
            cv2.fillPoly(kept_u8, [np.array(polygon, np.int32)], 0)
        if self._ignored_u8 is not None:
            if self._ignored_u8.shape != source_hw:
                got = "x".join(map(str, self._ignored_u8.shape[::-1]))
                raise ImageError(
                    f"the picture is {width}x{height}, the mask's image {got}",
                    remedy="draw the mask on a picture of this camera",
                )
            kept_u8[self._ignored_u8 > 127] = 0
        return kept_u8


def read_ignored(path: Path) -> NDArray[np.uint8]:
    """A mask's image (H, W), white where nothing is judged. Raises ImageError."""
    return read_mask(path)
