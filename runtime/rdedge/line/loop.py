"""The loop of a line: frames of all cameras through one engine in one thread, in turn or several in one call, until
they end or it is told to stop."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from rdedge.errors import RdedgeError
from rdedge.inspector import Inspection, Inspector, Prepared
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

    def next_of(self, inspector: Inspector) -> Lane | None:
        """The first of those with this engine, taken off the queue; None where none is in it."""
        with self._changed:
            for lane in self._lanes:
                if lane.inspector is inspector:
                    del self._lanes[lane]
                    return lane
            return None


class Loop:
    """Serves lanes fairly: a camera with a frame waits for at most one frame of each other camera.

    An engine for batches is given what is here, of whichever cameras, and never waits for a frame to come. With two
    batches in flight the second is put under way before the first one's verdicts are waited for, if it is here.
    """

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
        self._under_way: defaultdict[Inspector, deque[list[Lane]]] = defaultdict(deque)  # whose frames each batch has
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
            for inspector in self._under_way:
                self._finish_all(inspector)
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

    def _serve(self, lane: Lane) -> int:
        """A batch that begins with this camera; how many frames were judged meanwhile."""
        inspector = lane.inspector
        judged = 0
        try:
            self._start(lane)
        except RdedgeError:
            self._finish_all(inspector)
            raise
        while inspector.under_way and (inspector.is_full or not self._has_frame(inspector)):
            judged += self._finish(inspector)
        return judged

    def _start(self, first: Lane) -> None:
        """Puts under way what is here, in turn, at most a batch; where a frame fails, those before it."""
        inspector = first.inspector
        lanes: list[Lane] = []
        batch: list[Prepared] = []
        lane: Lane | None = first
        room = inspector.batch
        try:
            while lane is not None and room > 0:
                frame = lane.take()
                if frame is not None:
                    self._ready.add(lane)  # behind the others; it may have more, or be at its end
                    prepared = lane.prepare(frame)
                    room -= 1 if prepared is None else len(prepared.frames_u8)
                    if prepared is not None:
                        lanes.append(lane)
                        batch.append(prepared)
                lane = self._ready.next_of(inspector) if room > 0 else None
        finally:
            if batch:
                if room < 0:  # tiles that take several calls, which the engine makes one after the other
                    self._finish_all(inspector)
                inspector.start(batch)
                self._under_way[inspector].append(lanes)

    def _has_frame(self, inspector: Inspector) -> bool:
        return any(lane.inspector is inspector and lane.stream.has_frame for lane in self.lanes)

    def _finish(self, inspector: Inspector) -> int:
        """Waits for the oldest batch of an engine: its verdicts to their cameras' sinks, and how many."""
        lanes = self._under_way[inspector].popleft()
        for lane, inspection in zip(lanes, inspector.finish(), strict=True):
            self._on_shown(lane, lane.accept(inspection))
        return len(lanes)

    def _finish_all(self, inspector: Inspector) -> None:
        while inspector.under_way:
            self._finish(inspector)
