"""Signals of a running line: SIGTERM and SIGINT drain it, a second one ends it at once, SIGHUP reads its file again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

EXIT_UNDRAINED = 3  # the stop took longer than it may


class Signals:
    """Handlers for the time of a ``with`` block; only in the main thread, else none are set."""

    def __init__(self, on_stop: Callable[[], None], *, limit_s: float, reloads: bool):
        """``on_stop``: called once, in the handler; ``limit_s`` later the process ends in any case. ``reloads``: SIGHUP
        is for us."""
        self.received: signal.Signals | None = None  # the first that asked us to stop
        self.wants_reload = False
        self._on_stop = on_stop
        self._limit_s = limit_s
        self._timer: threading.Timer | None = None
        self._numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if reloads else [])]
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.wants_reload = True
            return
        if self.received is not None:
            _end_at_once(128 + number)
        self.received = signal.Signals(number)
        self._timer = threading.Timer(self._limit_s, _end_at_once, [EXIT_UNDRAINED])
        self._timer.daemon = True
        self._timer.start()
        self._on_stop()


def _end_at_once(code: int) -> None:
    """Without waiting for sinks or devices: what they hold on disk is whole at every moment."""
    if sys.stderr is not None and code == EXIT_UNDRAINED:
        os.write(2, b"rdedge: error: the line did not stop in time; see drain_s\n")
    os._exit(code)
