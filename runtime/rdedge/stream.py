"""The frame loop: a capture thread, a bounded queue, and a caller who judges. It counts what it drops."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rdedge.errors import UsageError
from rdedge.frames import Frame
from rdedge.sources import FrameSource

Policy = Literal["every", "latest"]
_JOIN_S = 2.0


@dataclass(slots=True)
class StreamCounts:
    """Frames offered by the source = delivered + dropped + still queued."""

    offered: int = 0
    delivered: int = 0
    dropped: int = 0


class Stream:
    """Frames of a source, read ahead in a thread; iterated once, from one thread.

    ``every`` waits for the consumer when the queue is full (files, triggered parts); ``latest`` keeps the newest frame
    and counts those it drops (free-running cameras).
    """

    def __init__(self, source: FrameSource, *, policy: Policy = "every", queue_size: int = 4):
        """``queue_size`` is for ``every``; ``latest`` always holds one."""
        if queue_size < 1:
            raise UsageError(f"queue size {queue_size}", remedy="use at least 1")
        self.counts = StreamCounts()
        self._source = source
        self._policy = policy
        self._capacity = 1 if policy == "latest" else queue_size
        self._queue: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._capture, name="rdedge-capture", daemon=True)

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; a fault of the source is raised here, after the frames before it.

        Closes itself on leaving. Raises UsageError when iterated a second time.
        """
        if self._thread.ident is not None:
            raise UsageError("this stream was iterated before", remedy="open the source and a stream again")
        self._thread.start()
        try:
            while (frame := self._next()) is not None:
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

    def close(self) -> None:
        """Stop capturing and release the source; safe at any moment, twice, and from any thread.

        A source whose read does not end when it is closed keeps its (daemon) thread; it is not waited for.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._source.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _next(self) -> Frame | None:
        """The oldest queued frame; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended or self._stopping)
            if self._stopping or not self._queue:
                return None
            frame = self._queue.popleft()
            self.counts.delivered += 1
            self._changed.notify_all()
            return frame

    def _capture(self) -> None:
        try:
            for frame in self._source:
                if not self._offer(frame):
                    break
        except BaseException as exc:  # handed to the consumer, who raises it
            self._error = exc
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _offer(self, frame: Frame) -> bool:
        """Queue one frame by the policy; False once the stream is stopping."""
        with self._changed:
            if self._policy == "every":
                self._changed.wait_for(lambda: len(self._queue) < self._capacity or self._stopping)
            if self._stopping:
                return False
            self.counts.offered += 1
            if len(self._queue) == self._capacity:
                self._queue.popleft()
                self.counts.dropped += 1
            self._queue.append(frame)
            self._changed.notify_all()
        return True
