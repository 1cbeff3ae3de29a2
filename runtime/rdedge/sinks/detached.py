"""A slow sink in a thread of its own: the line hands an inspection over and goes on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rdedge.errors import SinkError
from rdedge.events import Event, EventHandler, Severity
from rdedge.inspector import Inspection
from rdedge.sinks.base import Sink

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_JOIN_S = 1.0


@dataclass(slots=True)
class DetachedCounts:
    """taken = written + dropped_good + dropped_rejects + what still waits."""

    taken: int = 0
    written: int = 0
    dropped_good: int = 0
    dropped_rejects: int = 0


class DetachedSink:
    """``write`` never waits. What waits is bounded by the size of its pictures: beyond, the oldest good part is
    dropped, the oldest reject only when there is no good one; drops are counted, and told once until all is written.

    A disk that takes nothing is told once; the inspection is tried again after pauses that double from 0.5 s to 10 s.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        wants: Callable[[Inspection], bool],
        name: str,
        camera: str,
        on_event: EventHandler,
        max_bytes: int = 128 << 20,
        drain_s: float = 5.0,
    ):
        """``wants``: others are not even queued; ``drain_s``: how long ``close`` may go on writing."""
        self.counts = DetachedCounts()
        self._sink = sink
        self._wants = wants
        self._name = name
        self._camera = camera
        self._on_event = on_event
        self._max_bytes = max_bytes
        self._drain_s = drain_s
        self._queue: deque[Inspection] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._is_failing = False
        self._is_dropping = False
        self._closing_at_s: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"rdedge-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Inspections not yet written."""
        return len(self._queue)

    @property
    def lost(self) -> int:
        """Inspections that were dropped."""
        return self.counts.dropped_good + self.counts.dropped_rejects

    def write(self, inspection: Inspection) -> None:
        """See Sink.write; never raises. Ignored once closed."""
        if not self._wants(inspection):
            return
        with self._changed:
            if self._closing_at_s is not None:
                return
            self.counts.taken += 1
            self._queue.append(inspection)
            self._queued_bytes += _size_bytes(inspection)
            has_dropped = False
            while self._queued_bytes > self._max_bytes and len(self._queue) > 1:
                self._drop_one()
                has_dropped = True
            is_news, self._is_dropping = has_dropped and not self._is_dropping, self._is_dropping or has_dropped
            self._changed.notify_all()
        if is_news:
            self._tell(
                "pictures-lost", "error", f"{self._name}: cannot keep up, the oldest are dropped, good ones first"
            )

    def close(self) -> None:
        """Write for up to ``drain_s`` what waits; what then is left is counted as dropped and told."""
        with self._changed:
            if self._closing_at_s is not None:
                return
            self._closing_at_s = time.monotonic() + self._drain_s
            self._changed.notify_all()
        self._thread.join(self._drain_s + _JOIN_S)
        with self._changed:
            left = len(self._queue)
            while self._queue:
                self._drop_one()
        if left:
            self._tell("pictures-lost", "error", f"{self._name}: {left} were not written before the end")
        self._sink.close()

    def _drop_one(self) -> None:
        victim = next((i for i in self._queue if not i.verdict.is_anomalous), self._queue[0])
        self._take_out(victim)
        if victim.verdict.is_anomalous:
            self.counts.dropped_rejects += 1
        else:
            self.counts.dropped_good += 1

    def _take_out(self, inspection: Inspection) -> bool:
        """False if it was dropped meanwhile. By identity: inspections hold arrays, which have no plain equality."""
        for position, waiting in enumerate(self._queue):
            if waiting is inspection:
                del self._queue[position]
                self._queued_bytes -= _size_bytes(inspection)
                return True
        return False

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while (inspection := self._next()) is not None:
            try:
                self._sink.write(inspection)
            except Exception as exc:  # a thread that ended here would lose everything and say nothing
                if not isinstance(exc, SinkError) or not isinstance(exc.__cause__, OSError):
                    self._give_up(inspection, exc)
                    continue
                self._set_failing(str(exc))
                if self._was_closed_within(pause_s):
                    break
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _FIRST_PAUSE_S
                self._set_written(inspection)

    def _next(self) -> Inspection | None:
        """The oldest that waits; it stays in the queue until it is written. None when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing_at_s is not None)
            is_over = self._closing_at_s is not None and time.monotonic() >= self._closing_at_s
            return None if is_over or not self._queue else self._queue[0]

    def _was_closed_within(self, pause_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closing_at_s is not None, pause_s)

    def _set_written(self, inspection: Inspection) -> None:
        with self._changed:
            if not self._take_out(inspection):  # dropped while it was being written after all
                if inspection.verdict.is_anomalous:
                    self.counts.dropped_rejects -= 1
                else:
                    self.counts.dropped_good -= 1
            self.counts.written += 1
            if not self._queue:
                self._is_dropping = False
            was_failing, self._is_failing = self._is_failing, False
        if was_failing:
            self._tell("disk-recovered", "info", f"{self._name}: are written again, {self.lost} were dropped so far")

    def _set_failing(self, reason: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._tell("disk-fault", "error", f"{self._name}: {reason}")

    def _give_up(self, inspection: Inspection, reason: Exception) -> None:
        """This one will never be written, the next may."""
        with self._changed:
            if self._take_out(inspection):
                if inspection.verdict.is_anomalous:
                    self.counts.dropped_rejects += 1
                else:
                    self.counts.dropped_good += 1
        self._tell("picture-refused", "error", f"{self._name}: {reason}")

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        self._on_event(Event(kind=kind, severity=severity, text=text, camera=self._camera))


def _size_bytes(inspection: Inspection) -> int:
    return inspection.frame.image_bgr_u8.nbytes + inspection.verdict.anomaly_map.nbytes
