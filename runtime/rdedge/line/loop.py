"""The loop of a line: frames of all cameras through one engine in one thread, in turn, until they end or it is told to
stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

from rdedge.inspector import Inspection
from rdedge.line.keep_warm import KeepWarm
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.together import at_once

_TICK_S = 0.1  # how soon a stop is noticed while no frame comes

Shown = Callable[[Lane, Inspection], None]


class Ready:
    """Cameras with a frame, in order of arrival; a camera stands in the queue once, however many frames it has."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lanes: dict[Lane, None] = {}

    def add(self, lane: Lane) -> None:
        """At the end of the queue, unless it stands in it; from any thread."""
        with self._changed:
            if lane not in self._lanes:
                self._lanes[lane] = None
                self._changed.notify()

    def next(self, wait_s: float) -> Lane | None:
        """The first, taken off the queue; None after ``wait_s``."""
        with self._changed:
            if not self._lanes and not self._changed.wait_for(lambda: bool(self._lanes), wait_s):
                return None
            lane = next(iter(self._lanes))
            del self._lanes[lane]
            return lane


class Loop:
    """Serves lanes fairly: a camera with a frame waits for at most one frame of each other camera."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        drain_s: float,
        on_tick: Callable[[bool], None],
        on_shown: Shown,
        keep_warm_s: float = math.inf,
    ):
        """``on_tick`` is called in this thread, ten times a second or more often, with whether the line is alive: a
        frame was judged since, or it is known of every camera why none came. ``on_shown``: with each inspection.
        ``keep_warm_s``: see rdedge.line.keep_warm."""
        self.lanes = lanes
        self._drain_s = drain_s
        self._on_tick = on_tick
        self._on_shown = on_shown
        self._ready = Ready()
        self._keep_warm = KeepWarm([lane.inspector for lane in lanes], keep_warm_s)
        self._stop_by_s: float | None = None

    def stop(self) -> None:
        """Capture no more, judge what waits for at most ``drain_s``, then end. Safe in a signal's handler."""
        if self._stop_by_s is None:
            self._stop_by_s = time.monotonic() + self._drain_s

    def run(self) -> list[LaneCounts]:
        """Until every camera's frames have ended, or ``stop``. Raises BackendError, SinkError; closes all streams."""
        try:
            for lane in self.lanes:
                lane.stream.start(lambda lane=lane: self._ready.add(lane))  # type: ignore[misc]
            self._serve_all()
        finally:
            at_once(lane.stream.close for lane in self.lanes)
        return [lane.finish() for lane in self.lanes]

    def _serve_all(self) -> None:
        are_stopped = False
        ticked_s = 0.0
        judged = 0
        while not all(lane.is_done for lane in self.lanes):
            now_s = time.monotonic()
            if self._stop_by_s is not None:
                if not are_stopped:
                    are_stopped = True
                    at_once(lane.stream.stop for lane in self.lanes)
                    for lane in self.lanes:
                        self._ready.add(lane)
                if now_s >= self._stop_by_s:
                    return
            if now_s - ticked_s >= _TICK_S:
                ticked_s = now_s
                self._on_tick(judged > 0 or all(lane.is_accounted_for for lane in self.lanes))
                judged = 0
            next_lane = self._ready.next(self._keep_warm.wait_s(_TICK_S))
            if next_lane is not None:
                judged += self._serve(next_lane)
                self._keep_warm.rest()
            elif self._stop_by_s is None:
                self._keep_warm.run()

    def _serve(self, lane: Lane) -> bool:
        frame = lane.take()
        if frame is None:
            return False
        inspection = lane.judge(frame)
        self._ready.add(lane)  # behind the others; it may have more, or be at its end
        if inspection is None:
            return False
        self._on_shown(lane, inspection)
        return True
