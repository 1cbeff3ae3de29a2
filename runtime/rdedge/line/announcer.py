"""Where the line's events go: stderr, the sinks that forward alarms, the operator page, and a count for the metrics."""

from __future__ import annotations

import threading
from collections import Counter, deque
from contextlib import suppress

from rdedge.events import Event, EventHandler, tell


class Announcer:
    """An EventHandler for all parts of a line; from any thread."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # (camera, kind)
        self.last: deque[Event] = deque(maxlen=20)
        self._lock = threading.Lock()
        self._listeners: dict[str, list[EventHandler]] = {}

    def set_listeners(self, camera: str, listeners: list[EventHandler]) -> None:
        """Those who hear of a camera's events and of the line's; "" hears of everything."""
        with self._lock:
            self._listeners[camera] = listeners

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.counts[event.camera, event.kind] += 1
            self.last.append(event)
            hearing = [
                listener
                for camera, listeners in self._listeners.items()
                if event.camera in (camera, "") or camera == ""
                for listener in listeners
            ]
        with suppress(OSError):  # of a stderr that nobody reads any more
            tell(event)
        for listener in hearing:  # off the lock: a sink may have an event of its own to tell
            listener(event)
