"""The one way from a picture to the graph's frame: nothing is lost that a camera saw."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import ImageError
from rdedge.preprocess import preprocess, preprocess_mask, region_of_interest


def spec(height: int, width: int, roi_xywh: tuple[int, int, int, int] | None = None) -> InputSpec:
    return InputSpec(size_hw=(height, width), colour_order="rgb", resize="area+linear", roi_xywh=roi_xywh)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(48, 64), (96, 128), (50, 70), (480, 641), (300, 64), (48, 1000), (20, 30), (20, 1000), (1000, 20)]


@pytest.mark.parametrize("size_hw", SIZES)
def test_any_size_becomes_the_frame(size_hw: tuple[int, int]) -> None:
    frame = preprocess(noise(*size_hw), spec(48, 64))
    assert (frame.shape, frame.dtype) == ((1, 48, 64, 3), np.uint8)
    assert frame.flags.c_contiguous


def test_a_picture_of_the_frames_size_passes_unchanged_but_for_the_colour_order() -> None:
    picture = noise(48, 64)
    frame = preprocess(picture, spec(48, 64))
    assert (frame[0] == picture[:, :, ::-1]).all()
    assert not np.shares_memory(frame, picture)


def test_the_frame_is_rgb() -> None:
    blue_green_red = np.full((48, 64, 3), (10, 20, 30), np.uint8)
    assert preprocess(blue_green_red, spec(48, 64))[0, 0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize(("factor", "roundings"), [(2, 1), (3, 1), (5, 1), (8, 3), (10, 2), (100, 3)])
def test_shrinking_by_a_whole_number_is_the_mean_of_blocks(factor: int, roundings: int) -> None:
    picture = noise(48 * factor, 64 * factor)
    means = picture.reshape(48, factor, 64, factor, 3).mean(axis=(1, 3))[:, :, ::-1]
    errors = preprocess(picture, spec(48, 64))[0] - means
    assert np.abs(errors).max() <= 0.51 + 0.5 * (roundings - 1)
    assert abs(errors.mean()) < 0.15 * roundings  # of a halving's four possible rests, a half is rounded up


@pytest.mark.parametrize("size_hw", [(50, 70), (95, 127), (481, 643), (300, 64), (48, 1000)])
def test_shrinking_conserves_the_mean(size_hw: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, size_hw[0])[:, None, None] * np.linspace(0, 1, size_hw[1])[:, None]
    picture = np.repeat(ramp, 3, axis=2).astype(np.uint8)
    assert abs(preprocess(picture, spec(48, 64)).mean() - picture.mean()) < 1.0


@pytest.mark.parametrize(
    "size_hw", [(4800, 6400), (2000, 3000), (100, 130), (30, 3000)], ids=["whole", "odd", "slight", "strip"]
)
def test_a_scratch_of_one_pixel_survives_wherever_it_is(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    for x in range(width // 2, width // 2 + 60, 5):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, x] = 255
        frame = preprocess(picture, spec(48, 64))
        assert frame.sum(axis=2, dtype=int).min() > 0, f"lost at x = {x}"


@pytest.mark.parametrize("width", [65, 80, 90, 101, 110, 127])
def test_every_column_counts_within_an_eighth_of_the_others(width: int) -> None:
    weights = []
    for x in range(width):
        picture = np.zeros((96, width, 3), np.uint8)
        picture[:, x] = 255
        weights.append(preprocess(picture, spec(48, 64)).mean() * width / 255)
    assert min(weights) > 0.87 and max(weights) < 1.13


@pytest.mark.parametrize(
    ("size_hw", "crc"),
    [((50, 70), "8c8bae75"), ((480, 641), "6339c891"), ((20, 1000), "fd5dc1f2"), ((20, 30), "33ee642b")],
    ids=["slight", "whole and slight", "strip", "grown"],
)
def test_the_same_bits_on_every_processor(size_hw: tuple[int, int], crc: str) -> None:
    assert f"{zlib.crc32(preprocess(noise(*size_hw), spec(48, 64)).tobytes()):08x}" == crc


def test_growing_is_smooth_and_keeps_flat_flat() -> None:
    assert (preprocess(np.full((20, 30, 3), 77, np.uint8), spec(48, 64)) == 77).all()
    step = np.zeros((24, 32, 3), np.uint8)
    step[:, 16:] = 200
    row = preprocess(step, spec(48, 64))[0, 0, :, 0].astype(int)
    assert (np.diff(row) >= 0).all() and 0 < row[31] < row[32] < 200


def test_a_strip_shrinks_before_it_grows() -> None:
    strip = np.zeros((24, 640, 3), np.uint8)
    strip[:, ::10] = 250  # one bright column in ten: its mean is 25 wherever one looks
    assert (preprocess(strip, spec(48, 64)) == 25).all()


def test_the_region_of_interest_is_cut_out() -> None:
    picture = noise(200, 300)
    frame = preprocess(picture, spec(48, 64, (100, 50, 64, 48)))
    assert (frame == preprocess(picture[50:98, 100:164], spec(48, 64))).all()


@pytest.mark.parametrize("roi_xywh", [(237, 0, 64, 48), (0, 153, 64, 48), (0, 0, 301, 48), (0, 0, 64, 201)])
def test_a_region_that_leaves_the_picture_is_refused(roi_xywh: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match=r"the picture is 300x200, the region of interest .* leaves it; use pictures"):
        preprocess(noise(200, 300), spec(48, 64, roi_xywh))


def test_the_region_in_source_pixels() -> None:
    assert region_of_interest((200, 300), spec(48, 64)) == (0, 0, 300, 200)
    assert region_of_interest((200, 300), spec(48, 64, (236, 152, 64, 48))) == (236, 152, 64, 48)


@pytest.mark.parametrize("size_hw", [(48, 64), (100, 130), (20, 30)])
def test_a_view_of_an_array_is_like_its_copy(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    large = noise(2 * height, 2 * width)
    transposed = noise(width, height).transpose(1, 0, 2)
    for view in (large[::2, ::2], large[::-2, ::-2], large[5 : 5 + height, 3 : 3 + width], transposed):
        assert (preprocess(view, spec(48, 64)) == preprocess(view.copy(), spec(48, 64))).all()


def test_the_picture_stays_as_it_was() -> None:
    picture = noise(100, 130)
    before = picture.copy()
    preprocess(picture, spec(48, 64, (10, 10, 64, 48)))
    assert (picture == before).all()


def test_a_mask_is_cut_and_shrunk_like_its_picture() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[60:80, 120:140] = 255
    small = preprocess_mask(mask, spec(48, 64, (100, 50, 128, 96)))
    assert (small.shape, small.dtype) == ((48, 64), np.bool_)
    assert (np.argwhere(small).min(axis=0).tolist(), np.argwhere(small).max(axis=0).tolist()) == ([5, 10], [14, 19])


def test_a_mask_is_a_defect_above_127() -> None:
    mask = np.full((48, 64), 127, np.uint8)
    mask[0, 0] = 128
    assert np.argwhere(preprocess_mask(mask, spec(48, 64))).tolist() == [[0, 0]]
