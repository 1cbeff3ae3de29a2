"""The frame loop: a capture thread, a bounded queue, and a caller who judges. It counts what it drops."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rdedge.errors import UsageError
from rdedge.events import Event, EventHandler, tell
from rdedge.frames import Frame
from rdedge.sources import FrameSource

Policy = Literal["every", "latest", "drop-late"]
_JOIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCounts:
    """At every moment, offered = delivered + dropped + queued; ``late`` is the part of ``dropped`` that was too old."""

    offered: int = 0
    delivered: int = 0
    dropped: int = 0
    late: int = 0
    queued: int = 0


class Stream:
    """Frames of a source, read ahead in a thread; iterated once, from one thread.

    ``every`` waits for the consumer when the queue is full (files). A camera must not wait with a part, whose picture
    would then be another's: a frame with a part's name that finds the queue full is dropped, and an event says which.
    ``latest`` keeps the newest frame and counts those it drops (free-running cameras). ``drop-late`` keeps the newest
    ``queue_size`` frames in order and drops those older than ``max_age_ms`` when their turn comes.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        policy: Policy = "every",
        queue_size: int = 4,
        max_age_ms: float | None = None,
        camera: str = "",
        on_event: EventHandler = tell,
    ):
        """``latest`` always holds one; ``max_age_ms`` is for ``drop-late`` alone; ``camera`` names it in events."""
        if queue_size < 1:
            raise UsageError(f"queue size {queue_size}", remedy="use at least 1")
        if (policy == "drop-late") != (max_age_ms is not None):
            raise UsageError(f"policy {policy} with a greatest age of {max_age_ms} ms", remedy="drop-late needs one")
        if max_age_ms is not None and not max_age_ms > 0.0:
            raise UsageError(f"a greatest age of {max_age_ms} ms", remedy="give the line's cycle time in ms")
        self._source = source
        self._policy = policy
        self._capacity = 1 if policy == "latest" else queue_size
        self._max_age_s = None if max_age_ms is None else max_age_ms / 1e3
        self._camera, self._on_event = camera, on_event
        self._offered = self._delivered = self._dropped = self._late = 0
        self._is_behind = False
        self._events: deque[Event] = deque()  # told when the lock is released
        self._queue: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._error: BaseException | None = None
        self._on_change: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._capture, name="rdedge-capture", daemon=True)

    @property
    def counts(self) -> StreamCounts:
        """The counts of one moment; from any thread."""
        with self._changed:
            return StreamCounts(
                offered=self._offered,
                delivered=self._delivered,
                dropped=self._dropped,
                late=self._late,
                queued=len(self._queue),
            )

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; a fault of the source is raised here, after the frames before it.

        Closes itself on leaving. Raises UsageError when iterated a second time.
        """
        self.start()
        try:
            while (frame := self._next(waits=True)) is not None:
                yield frame
            if self._error is not None and not self._stopping:
                raise self._error
        finally:
            self.close()

    @property
    def has_frame(self) -> bool:
        """Whether the next frame is here, so that iterating does not wait for the source."""
        with self._changed:
            return bool(self._queue) and not self._stopping

    def start(self, on_change: Callable[[], None] | None = None) -> None:
        """Begin to capture for a caller who serves several streams and takes their frames with ``take``.

        ``on_change`` is called, from the capture thread, when a frame was queued and when none will come any more.
        Raises UsageError the second time, also after an iteration.
        """
        if self._thread.ident is not None:
            raise UsageError("this stream was iterated before", remedy="open the source and a stream again")
        self._on_change = on_change
        self._thread.start()

    def take(self) -> Frame | None:
        """The next frame if one waits; a fault of the source is raised after the frames before it, once."""
        has_ended = self._ended  # before the queue is looked at: a last frame may come meanwhile
        frame = self._next(waits=False)
        if frame is None and has_ended and self._error is not None and not self._stopping:
            error, self._error = self._error, None
            raise error
        return frame

    @property
    def is_over(self) -> bool:
        """No frame waits and none will come."""
        with self._changed:
            return not self._queue and (self._ended or self._stopping) and (self._error is None or self._stopping)

    def stop(self) -> None:
        """Capture no more; what is queued can still be taken. Call ``close`` in the end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._source.close()

    def close(self) -> None:
        """Stop capturing and release the source; safe at any moment, twice, and from any thread.

        A source whose read does not end when it is closed keeps its (daemon) thread; it is not waited for.
        """
        self.stop()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _next(self, *, waits: bool) -> Frame | None:
        """The oldest queued frame that is young enough; None at the end, and where there is none to wait for."""
        while True:
            with self._changed:
                if waits:
                    self._changed.wait_for(lambda: self._queue or self._ended or self._stopping)
                if (waits and self._stopping) or not self._queue:
                    return None
                frame = self._queue.popleft()
                is_late = self._max_age_s is not None and _age_s(frame) > self._max_age_s
                if is_late:
                    self._late += 1
                    self._drop(frame, f"is {_age_s(frame) * 1e3:.0f} ms old")
                else:
                    self._delivered += 1
                if self._is_behind and not self._queue:
                    self._is_behind = False
                    self._note("caught-up", "info", "parts are judged in time again")
                self._changed.notify_all()
            self._tell()
            if not is_late:
                return frame

    def _capture(self) -> None:
        try:
            for frame in self._source:
                if not self._offer(frame):
                    break
                self._announce()
                self._tell()
        except BaseException as exc:  # handed to the consumer, who raises it
            self._error = exc
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._announce()

    def _announce(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _offer(self, frame: Frame) -> bool:
        """Queue one frame by the policy; False once the stream is stopping."""
        with self._changed:
            if self._policy == "every" and frame.part_id is None:
                self._changed.wait_for(lambda: len(self._queue) < self._capacity or self._stopping)
            if self._stopping:
                return False
            self._offered += 1
            if len(self._queue) < self._capacity:
                self._queue.append(frame)
            elif self._policy == "every":
                self._alarm()
                self._drop(frame, f"came while {self._capacity} others waited")
            else:
                self._drop(self._queue.popleft(), "was overtaken by newer frames")
                self._queue.append(frame)
            self._changed.notify_all()
        return True

    def _alarm(self) -> None:
        if not self._is_behind:
            self._is_behind = True
            self._note("backlog", "error", f"parts come faster than they are judged; {self._capacity} wait")

    def _drop(self, frame: Frame, why: str) -> None:
        self._dropped += 1
        if frame.part_id is not None:
            self._note("part-lost", "error", f"part {frame.part_id} {why}; it gets no verdict")

    def _note(self, kind: str, severity: Literal["info", "error"], text: str) -> None:
        self._events.append(Event(kind=kind, severity=severity, text=text, camera=self._camera))

    def _tell(self) -> None:
        """Hands on what was noted, without the lock: a handler may look at the counts."""
        while self._events:
            try:
                event = self._events.popleft()
            except IndexError:  # the other thread told it
                return
            self._on_event(event)


def _age_s(frame: Frame) -> float:
    """Seconds since exposure, by the camera's clock where it is known."""
    taken_s = frame.captured_at_s if frame.device_timestamp_s is None else frame.device_timestamp_s
    return time.monotonic() - taken_s
