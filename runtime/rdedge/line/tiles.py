"""A large sensor through a small model: overlapping tiles, and one map of the whole picture from theirs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdedge.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """``tile_wh``: pixels of the sensor a tile shows; ``overlap_px``: what neighbours share at least."""

    tile_wh: tuple[int, int]
    overlap_px: int

    def boxes(self, source_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Tiles x, y, w, h row by row, evenly spread from edge to edge. Raises ImageError on a smaller picture."""
        height, width = source_hw
        tile_w, tile_h = self.tile_wh
        if width < tile_w or height < tile_h:
            raise ImageError(
                f"the picture is {width}x{height}, smaller than a tile of {tile_w}x{tile_h}",
                remedy="use smaller tiles, or none",
            )
        columns, rows = starts(width, tile_w, self.overlap_px), starts(height, tile_h, self.overlap_px)
        return [(x, y, tile_w, tile_h) for y in rows for x in columns]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """The first pixel of each tile along one side: as few tiles as keep the overlap, at even distances."""
    count = 1 if length == tile else -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]


def stitched_hw(source_hw: tuple[int, int], tile_wh: tuple[int, int], tile_map_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the map of a whole picture whose tiles have maps of ``tile_map_hw``."""
    (height, width), (tile_w, tile_h), (map_h, map_w) = source_hw, tile_wh, tile_map_hw
    return max(map_h, round(height * (map_h / tile_h))), max(map_w, round(width * (map_w / tile_w)))


def stitch(
    tile_maps: list[NDArray[np.float32]], boxes: list[tuple[int, int, int, int]], source_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Maps (h, w) of tiles -> the map of the whole picture at the tiles' scale, without averaging.

    In an overlap each pixel comes from the tile in which it lies deepest: a network sees least at its own border, and
    a mean of two maps would fit no threshold.
    """
    map_h, map_w = tile_maps[0].shape
    _, _, tile_w, tile_h = boxes[0]
    scale_y, scale_x = map_h / tile_h, map_w / tile_w
    height, width = stitched_hw(source_hw, (tile_w, tile_h), (map_h, map_w))
    whole = np.full((height, width), -np.inf, np.float32)
    deepest = np.zeros((height, width), np.float32)
    depth = np.outer(_depth(map_h), _depth(map_w)).astype(np.float32)
    for tile_map, (x, y, _, _) in zip(tile_maps, boxes, strict=True):
        top, left = min(round(y * scale_y), height - map_h), min(round(x * scale_x), width - map_w)
        window = np.s_[top : top + map_h, left : left + map_w]
        is_deeper = depth > deepest[window]
        whole[window] = np.where(is_deeper, tile_map, whole[window])
        deepest[window] = np.where(is_deeper, depth, deepest[window])
    return whole


def _depth(n: int) -> NDArray[np.float64]:
    """Distance of each of n pixels from the nearer end, 1 at the end."""
    return np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float64)
