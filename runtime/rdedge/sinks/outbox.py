"""A bounded spool on disk and a thread that delivers from it: in order, at least once, whatever is away or killed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rdedge.errors import SinkError
from rdedge.events import Event, EventHandler, Severity
from rdedge.sinks.held import HeldLines
from rdedge.sinks.spool import Item, Spool, decode, encode

_HELD_BYTES = 4 << 20
_FIRST_PAUSE_S = 0.5
_IDLE_S = 1.0

Deliver = Callable[[Sequence[Item]], int]


@dataclass(slots=True)
class OutboxCounts:
    """appended = delivered + lost + what still waits, within one process; ``delivered`` includes an earlier one's."""

    appended: int = 0
    delivered: int = 0
    lost: int = 0


class Outbox:
    """``append`` never waits for the receiver, and hardly for the disk (see HeldLines); a thread delivers.

    What the kernel has survives SIGKILL at once, and a power cut a second later (see LineLog). Delivered is what
    ``deliver`` said arrived; after a crash the last few may come again, so records carry ids. When the spool would grow
    beyond ``max_bytes`` its oldest sixteenth is dropped, counted in ``counts.lost`` and told. While the disk takes
    nothing, up to 4 MB wait in memory, and are delivered from there.
    """

    def __init__(
        self,
        folder: Path,
        deliver: Deliver,
        *,
        name: str,
        camera: str,
        on_event: EventHandler,
        max_bytes: int,
        batch: int,
        longest_pause_s: float,
        drain_s: float,
    ):
        """Opens the spool and begins with what an earlier process left in it.

        ``deliver`` gets at most ``batch`` items, from its own thread, answers within seconds how many of them arrived,
        counted from the first, and raises SinkError while the receiver is away; it is then called again after pauses
        that double up to ``longest_pause_s``. ``drain_s``: how long ``close`` may go on delivering. Raises SinkError
        if the folder cannot be used or another process uses it.
        """
        self.counts = OutboxCounts()
        self._deliver = deliver
        self._name = name
        self._camera = camera
        self._on_event = on_event
        self._batch = batch
        self._longest_pause_s = longest_pause_s
        self._drain_s = drain_s
        self._changed = threading.Condition()
        self._news: deque[Event] = deque()
        self._ahead: deque[Item] = deque()  # taken from the spool, not yet delivered
        self._is_away = False
        self._is_dropping = False
        self._closing_at_s: float | None = None
        self._spool = Spool(folder, max_bytes=max_bytes)
        self._held = HeldLines(self._spool.append, max_bytes=_HELD_BYTES, on_change=self._note_disk)
        self._next_seq = self._spool.last_seq + 1
        self.counts.appended = self._spool.unread
        if self._spool.damaged:
            self._note("spool-damaged", "warning", f"{folder}: {self._spool.damaged} damaged records were left out")
        self._tell()
        self._thread = threading.Thread(target=self._work, name=f"rdedge-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records not yet delivered."""
        return self.counts.appended - self.counts.delivered - self.counts.lost

    def append(self, topic: str, body: bytes) -> None:
        """Take one record, from any thread; ignored once closed. ``topic``: one word; ``body``: JSON in one line."""
        with self._changed:
            if self._closing_at_s is not None:
                return
            given_up = self._held.put(encode(Item(self._next_seq, topic, body)))
            self._next_seq += 1
            self.counts.appended += 1
            self._count_lost(sum(item.seq > self._spool.taken for item in _decoded(given_up)))
            self._changed.notify_all()
        self._tell()

    def close(self) -> None:
        """Deliver for up to ``drain_s`` what waits; the rest stays for the next process. May be called twice.

        Raises SinkError if the disk refuses what is to stay.
        """
        with self._changed:
            if self._closing_at_s is not None:
                return
            self._closing_at_s = time.monotonic() + self._drain_s
            self._changed.notify_all()
        self._thread.join(self._drain_s + 2 * _IDLE_S)
        left = self._held.close()
        with self._changed:
            self._count_lost(sum(item.seq > self._spool.acked for item in _decoded(left)))
            self._spool.close()
        self._tell()

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                items = self._next_items()
                if not items:
                    break
                arrived = self._deliver(items)
            except Exception as exc:  # a thread that ended here would lose everything and say nothing
                self._set_away(str(exc) if isinstance(exc, SinkError) else f"{type(exc).__name__}: {exc}")
                if self._closing_at_s is not None:
                    break  # one try more than the pauses allowed; the rest stays
                with self._changed:
                    self._changed.wait_for(lambda: self._closing_at_s is not None, pause_s)
                pause_s = min(2 * pause_s, self._longest_pause_s)
            else:
                if arrived:
                    pause_s = _FIRST_PAUSE_S
                    self._set_arrived(arrived)

    def _next_items(self) -> list[Item]:
        """Up to a batch, waiting for the first; empty when it is time to end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting > 0 or self._closing_at_s is not None, _IDLE_S)
                if self._closing_at_s is not None and (self.waiting == 0 or time.monotonic() >= self._closing_at_s):
                    return []
            self._ahead.extend(self._spool.read(self._batch - len(self._ahead)))
            with self._changed:
                self._count_lost(0)
                self._take_held()
                if not self._ahead and self.waiting > 0:
                    self._changed.wait(_IDLE_S)
            self._tell()
            if self._ahead:
                return list(self._ahead)

    def _take_held(self) -> None:
        """What the disk does not take is delivered from memory, once all before it was read."""
        waiting = self._held.waiting(2 * self._batch) if self._held.is_failing else []
        if self._spool.last_seq > self._spool.taken:  # looked at after the copy was made: none is between them
            return
        for item in _decoded(waiting):
            if len(self._ahead) < self._batch and item.seq > self._spool.taken:
                self._spool.skip_to(item.seq)
                self._ahead.append(item)

    def _set_arrived(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                acked_seq = self._ahead.popleft().seq
            self._spool.ack(acked_seq)
            self.counts.delivered += count
            if self._held.is_failing:
                self._held.skip_while(lambda line: next(_decoded([line])).seq <= acked_seq)
            if self._is_away:
                self._is_away = False
                self._note("sink-back", "info", f"{self._name}: is back, {self.waiting} records wait")
            if self.waiting == 0:
                self._is_dropping = False
        self._tell()

    def _set_away(self, reason: str) -> None:
        with self._changed:
            if not self._is_away:
                self._is_away = True
                self._note("sink-away", "warning", f"{self._name}: is away ({reason}); records wait on the disk")
        self._tell()

    def _count_lost(self, count: int) -> None:
        """Those given up in memory, and what the spool lost."""
        count += self._spool.take_lost()
        self.counts.lost += count
        if count and not self._is_dropping:
            self._is_dropping = True
            self._note("spool-full", "error", f"{self._name}: no more room for what waits, the oldest records are lost")

    def _note_disk(self, fault: OSError | None) -> None:
        if fault is None:
            self._note("disk-recovered", "info", f"{self._name}: the spool is written again")
        else:
            text = f"{self._name}: the spool cannot be written ({fault.strerror}); records wait in memory"
            self._note("disk-fault", "error", text)
        self._tell()

    def _note(self, kind: str, severity: Severity, text: str) -> None:
        self._news.append(Event(kind=kind, severity=severity, text=text, camera=self._camera))

    def _tell(self) -> None:
        """Off the lock: the handler may append."""
        while self._news:
            with suppress(IndexError):  # another thread told it
                self._on_event(self._news.popleft())


def _decoded(lines: Iterable[bytes]) -> Iterator[Item]:
    return (item for line in lines if (item := decode(line)) is not None)
