"""Watches whether the board slows the line down for heat or current, and says so: a late verdict then has a cause."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rdedge.board.thermal import Heat, read_heat
from rdedge.events import Event, EventHandler, Severity

_EVERY_S = 2.0
_CALM_S = 60.0  # without over-current before it is over: it comes in bursts under load


class HeatWatch:
    """Reads the board's sensors in a thread of its own until closed; on machines that do not say when they throttle, it
    reads once and that is all."""

    def __init__(self, on_event: EventHandler, *, root: Path = Path("/"), every_s: float = _EVERY_S):
        """``root``: where ``sys`` is; ``every_s``: between two readings. Raises nothing."""
        self._root, self._every_s, self._on_event = root, every_s, on_event
        self._throttled: list[str] = []
        self._over_currents: dict[str, int] = {}  # the last count of each kind that could be read
        self._over_since_s: float | None = None  # time.monotonic of the last over-current, while it is not over
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        first = read_heat(root)
        self._heat = first
        self._over_currents |= first.over_currents
        if first.can_tell:
            self._thread = threading.Thread(target=self._watch, name="rdedge-heat", daemon=True)
            self._thread.start()

    @property
    def heat(self) -> Heat | None:
        """The last reading; None on machines that do not say when they throttle."""
        return None if self._thread is None else self._heat

    def close(self) -> None:
        """May be called twice."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            now = read_heat(self._root)
            for event in self._changes(now, time.monotonic()):
                self._on_event(event)
            self._heat = now
            if self._closing.wait(self._every_s):
                return

    def _changes(self, now: Heat, now_s: float) -> Iterator[Event]:
        if now.throttled and not self._throttled:
            where = f" ({now.hottest})" if now.hottest else ""
            text = f"the board is too hot{where} and slows down: {', '.join(now.throttled)}; verdicts take longer"
            yield _event("throttling", "warning", text)
        elif self._throttled and not now.throttled:
            yield _event("throttling-over", "info", "the board has cooled down and runs at its full clocks")
        self._throttled = now.throttled
        risen = [kind for kind, count in now.over_currents.items() if count > self._over_currents.get(kind, 0)]
        self._over_currents |= now.over_currents
        if risen:
            if self._over_since_s is None:
                yield _event(
                    "over-current",
                    "warning",
                    f"the board slows down for moments: {', '.join(risen)}; check its power supply, or take a mode of "
                    "less power",
                )
            self._over_since_s = now_s
        elif self._over_since_s is not None and now_s - self._over_since_s >= _CALM_S:
            self._over_since_s = None
            yield _event("over-current-over", "info", f"no over-current for {_CALM_S:.0f} s")


def _event(kind: str, severity: Severity, text: str) -> Event:
    return Event(kind=kind, severity=severity, text=text, camera="")
