"""What is no picture of a part is named; what is one, however dark or bright the scene, goes through."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.frames import Frame
from rdedge.sources.health import Pace, PictureCheck, WatchLimits

SIZE_HW = (120, 160)


def scene(level: float, seed: int = 0, size_hw: tuple[int, int] = SIZE_HW, noise: float = 2.0) -> NDArray[np.uint8]:
    """A bright part on a ground of this level, with a sensor's noise."""
    image = np.full((*size_hw, 3), level, np.float64)
    image[40:60, 50:80] += 60
    return np.clip(image + np.random.default_rng(seed).normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def shown(image: NDArray[np.uint8], at_s: float = 0.0, part_id: str | None = None) -> Frame:
    return Frame(image_bgr_u8=image, index=0, captured_at_s=at_s, source="cam", part_id=part_id)


def flat(level: int, noise: float) -> NDArray[np.uint8]:
    noisy = np.random.default_rng(1).normal(level, noise, (*SIZE_HW, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (flat(0, 0.0), "black"),
        (flat(3, 1.5), "black"),
        (flat(255, 0.0), "saturated"),
        (flat(255, 0.5), "saturated"),
        (scene(0), None),
        (scene(5), None),
        (scene(195, noise=1.0), None),
        (flat(128, 3.0), None),
        (np.dstack([flat(0, 0)[..., 0], flat(0, 0)[..., 0], flat(90, 3)[..., 0]]), None),
    ],
    ids=["no light", "lens cap", "white", "white, noisy", "dark field", "dark ground", "bright", "grey", "red light"],
)
def test_no_light_and_too_much_are_told_from_dark_and_bright_scenes(image: NDArray[np.uint8], kind: str | None) -> None:
    fault = PictureCheck(WatchLimits()).fault_of(shown(image))
    assert (fault.kind if fault else None) == kind
    assert fault is None or fault.is_certain


def test_the_very_pixels_of_the_frame_before_are_never_a_picture() -> None:
    check = PictureCheck(WatchLimits(frozen_frames=3, frozen_s=2.0))
    assert check.fault_of(shown(scene(90, 1), 0.0)) is None
    faults = [check.fault_of(shown(scene(90, 2), at_s)) for at_s in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]
    assert faults[0] is None and all(fault is not None and fault.kind == "frozen" for fault in faults[1:])
    assert [fault.is_certain for fault in faults if fault] == [False, False, False, True, True]
    assert faults[4] is not None and "5 equal frames in 2.0 s" in faults[4].text
    assert check.fault_of(shown(scene(90, 3), 4.0)) is None


def test_one_pixel_makes_another_picture() -> None:
    check = PictureCheck(WatchLimits())
    image = scene(90)
    check.fault_of(shown(image))
    image = image.copy()
    image[77, 101, 1] ^= 1
    assert check.fault_of(shown(image)) is None


def test_the_same_picture_for_two_parts_is_told_at_once() -> None:
    check = PictureCheck(WatchLimits())
    check.fault_of(shown(scene(90), 0.0, "P1"))
    fault = check.fault_of(shown(scene(90), 0.1, "P2"))
    assert fault is not None and fault.is_certain


def test_the_first_picture_sets_the_size_and_a_black_frame_does_not() -> None:
    check = PictureCheck(WatchLimits())
    assert check.fault_of(shown(np.zeros((8, 8, 3), np.uint8))) is not None
    assert check.fault_of(shown(scene(90, 1))) is None
    fault = check.fault_of(shown(scene(90, 2, (120, 161))))
    assert fault is not None and fault.kind == "resized"
    assert "161x120 instead of 160x120" in fault.text
    assert check.fault_of(shown(scene(90, 3))) is None


@pytest.mark.parametrize("fps", [25.0, None], ids=["promised", "learnt"])
def test_a_slow_camera_is_told_from_one_that_jitters(fps: float | None) -> None:
    rng = np.random.default_rng(3)
    pace = Pace(fps, slow_factor=2.0)
    for wait_s in 0.04 + rng.uniform(-0.03, 0.03, 300):
        pace.add(wait_s)
        assert not pace.is_slow
    for _ in range(60):
        pace.add(0.2)
    assert pace.is_slow and pace.interval_s == pytest.approx(0.2, rel=0.1)
    for _ in range(60):
        pace.add(0.04)
    assert not pace.is_slow


def test_a_camera_that_hands_over_a_backlog_is_not_slow() -> None:
    pace = Pace(25.0, slow_factor=2.0)
    for _ in range(100):
        pace.add(0.0)
    assert not pace.is_slow


@pytest.mark.parametrize("backlog", [11, 19, 60])
def test_a_pace_is_not_learnt_from_a_backlog(backlog: int) -> None:
    """As where frames piled up between the opening and the first read."""
    pace = Pace(None, slow_factor=2.0)
    for wait_s in [0.0005] * backlog + [0.02] * 300:
        pace.add(wait_s)
        assert not pace.is_slow
    for _ in range(60):
        pace.add(0.2)
    assert pace.is_slow


def test_a_pace_is_learnt_with_the_pause_that_made_a_backlog() -> None:
    pace = Pace(None, slow_factor=2.0)
    for wait_s in [0.02] * 5 + [0.5] + [0.0005] * 24 + [0.02] * 300:
        pace.add(wait_s)
        assert not pace.is_slow
    assert pace.promised_s == pytest.approx(0.02, rel=0.1)
