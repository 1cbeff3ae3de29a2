"""A camera's timestamps become moments of ours, never later than the frame's arrival; gaps in them are counted."""

from __future__ import annotations

import numpy as np
import pytest

from rdedge.sources.clock import DeviceClock, GapCounter


@pytest.mark.parametrize("start_s", [0.0, 1.7e9], ids=["since power-on", "since 1970"])
def test_jitter_of_the_way_is_taken_out(start_s: float) -> None:
    rng = np.random.default_rng(1)
    clock = DeviceClock()
    errors_s = []
    for i in range(1000):
        taken_s = 100.0 + i * 0.04
        arrived_s = taken_s + 0.002 + rng.exponential(0.01)
        mapped_s = clock.to_monotonic_s(taken_s - 100.0 + start_s, arrived_s)
        assert mapped_s <= arrived_s
        errors_s.append(mapped_s - taken_s)
    assert np.all(np.abs(np.array(errors_s[100:]) - 0.002) < 0.001), "two milliseconds are the shortest way"


def test_a_drifting_crystal_does_not_carry_the_moments_away() -> None:
    clock = DeviceClock()
    for i in range(100_000):  # over an hour at 50 ppm: 200 ms in all
        taken_s = i * 0.04
        mapped_s = clock.to_monotonic_s(taken_s * (1 - 50e-6), taken_s + 0.001)
    assert abs(mapped_s - taken_s) < 0.0025


def test_a_clock_that_starts_anew_is_followed() -> None:
    clock = DeviceClock()
    clock.to_monotonic_s(5000.0, 100.0)
    assert clock.to_monotonic_s(0.5, 101.0) == pytest.approx(101.0)
    assert clock.to_monotonic_s(0.6, 101.2) == pytest.approx(101.1)


def test_gaps_are_counted_in_frames() -> None:
    gaps = GapCounter()
    for at in (0, 1, 2.2, 2.9, 6, 7, 3, 4):  # 3, 4 and 5 are missing; a step back is no gap
        gaps.add(at / 25.0, 25.0)
    assert gaps.lost == 2
