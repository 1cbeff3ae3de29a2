"""Between the line and a disk that may be slow, hang or be full: lines wait in memory, in order, up to a size."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from rdedge.sinks.lines import is_syncing

_PATIENCE_S = 0.02
_RETRY_S = 1.0
_CLOSE_S = 5.0  # beyond, the disk hangs


class HeldLines:
    """Lines on their way to the disk; nobody waits long for it, and what it refuses comes again.

    Whoever puts a line writes it, so that not even a kill can lose it. But a write may wait for a sync, on a card for a
    second. So while this process syncs anything a thread writes, and is waited for 20 ms at most; while earlier lines
    wait, not at all.
    """

    def __init__(self, write: Callable[[bytes], None], *, max_bytes: int, on_change: Callable[[OSError | None], None]):
        """``write`` raises OSError, and then nothing was written. ``on_change`` is told the first fault, by the thread,
        and None when a line is written again. ``max_bytes`` wait, then the oldest go.
        """
        self.is_failing = False
        self._lines: deque[bytes] = deque()
        self._write = write
        self._max_bytes = max_bytes
        self._on_change = on_change
        self._bytes = 0
        self._is_writing = False
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, line: bytes) -> list[bytes]:
        """Have it written after those that wait; returns the lines given up for lack of room."""
        with self._changed:
            had_waiting = bool(self._lines)
            if not had_waiting and not self.is_failing and not is_syncing():
                with suppress(OSError):  # the thread tries again, and tells
                    self._write(line)
                    return []
            self._lines.append(line)
            self._bytes += len(line)
            given_up = []
            while self._bytes > self._max_bytes and len(self._lines) > self._is_writing:
                given_up.append(self._take_out(int(self._is_writing)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rdedge-lines", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            if not had_waiting:
                self._changed.wait_for(lambda: not self._lines or self.is_failing, _PATIENCE_S)
            return given_up

    def waiting(self, limit: int) -> list[bytes]:
        """A copy of the oldest lines that wait."""
        with self._changed:
            return list(islice(self._lines, limit))

    def skip_while(self, is_done: Callable[[bytes], bool]) -> None:
        """The oldest lines need not be written any more."""
        with self._changed:
            first = int(self._is_writing)
            while len(self._lines) > first and is_done(self._lines[first]):
                self._take_out(first)

    def close(self) -> list[bytes]:
        """Write what waits, with one more try if the disk refuses; returns what could not be written."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        self._thread, self._is_closing = None, False
        with self._changed:
            left = list(self._lines)
            self._lines.clear()
            self._bytes = 0
            return left

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closing)
                if not self._lines:
                    return
                line, self._is_writing, is_last_try = self._lines[0], True, self._is_closing
            fault = None
            try:
                self._write(line)
            except OSError as exc:
                fault = exc
            with self._changed:
                self._is_writing = False
                if fault is None and self._lines:
                    self._take_out(0)
                was_failing, self.is_failing = self.is_failing, fault is not None
                self._changed.notify_all()
            if was_failing != self.is_failing:
                self._on_change(fault)
            if fault is not None:
                if is_last_try:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing, _RETRY_S)

    def _take_out(self, position: int) -> bytes:
        line = self._lines[position]
        del self._lines[position]
        self._bytes -= len(line)
        return line
