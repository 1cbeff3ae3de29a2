"""A camera's own clock, read on ours, and the frames its timestamps show to be missing."""

from __future__ import annotations

import math

_WINDOW_S = 10.0


class DeviceClock:
    """Maps a device's timestamps to ``time.monotonic``.

    A frame cannot arrive before it was taken, so the smallest difference between arrival and timestamp is the clocks'
    offset plus the shortest way. It is taken over the last 10 to 20 seconds, as crystals drift (50 ppm are 1 ms in
    20 s). A clock that jumps by more than a window starts anew.
    """

    def __init__(self) -> None:
        self._started_s = -math.inf
        self._offset_s = self._previous_s = math.inf

    def to_monotonic_s(self, device_s: float, arrived_s: float) -> float:
        """When the frame was taken, at most ``arrived_s``."""
        offset_s = arrived_s - device_s
        if abs(offset_s - self._offset_s) > _WINDOW_S:  # also the first frame
            self._offset_s = self._previous_s = offset_s
            self._started_s = arrived_s
        elif arrived_s - self._started_s > _WINDOW_S:
            self._previous_s, self._offset_s = self._offset_s, offset_s
            self._started_s = arrived_s
        self._offset_s = min(self._offset_s, offset_s)
        # The sum is rounded, and could lie a hair after its arrival.
        return min(arrived_s, device_s + min(self._offset_s, self._previous_s))


class GapCounter:
    """Counts frames missing between timestamps, for devices that do not number their frames."""

    def __init__(self) -> None:
        self.lost = 0
        self._last_s: float | None = None

    def add(self, device_s: float, fps: float) -> None:
        """``fps``: the rate that the device keeps. A step back is another stream, not a gap."""
        if self._last_s is not None:
            self.lost += max(0, round((device_s - self._last_s) * fps) - 1)
        self._last_s = device_s
