"""The events the page shows: the last ones, and which alarms still stand."""

from __future__ import annotations

import threading
import time
from collections import deque

from rdedge.events import Event
from rdedge.text import printable

_EVENTS = 50
_MOMENT_S = 60.0  # so long what happened once is shown as an alarm
_CAMERA = "camera"
_ENDS = {  # the kind that ends an alarm, and what it ends
    "recovered": _CAMERA,
    "caught-up": "backlog",
    "sink-back": "sink-away",
    "sink-recovered": "sink-fault",
    "disk-recovered": "disk-fault",
    "drift-over": "drift",
}
_WITH_SUBJECT = ("sink-away", "disk-fault", "drift")  # of these a camera may have several, named by the first word
_MOMENTS = frozenset(  # kinds that nothing ends
    (
        "config",
        "left",
        "page",
        "part-incomplete",
        "part-lost",
        "picture-refused",
        "pictures-lost",
        "spool-damaged",
        "spool-full",
        "unjudged",
    )
)


class EventBoard:
    """Bounded memory of what happened.

    Any kind that is not listed above is a fault of the camera: it stands until a ``recovered`` that ends it, and while
    it is an error newer than the last verdict, the page claims no verdict.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._alarms: dict[tuple[str, str, str], Event] = {}

    def add(self, event: Event) -> None:
        """Take one event."""
        family = _family(event)
        subjects = event.ends if event.kind == "recovered" else (_subject(event, family),)
        keys = [(event.camera, family, subject) for subject in subjects]
        with self._lock:
            self._count += 1
            self._events.append(event)
            for key in keys:
                self._alarms.pop(key, None)
                if event.severity != "info":
                    self._alarms[key] = event
            while len(self._alarms) > _EVENTS:
                del self._alarms[next(iter(self._alarms))]

    def news(self) -> tuple[dict[str, object], object]:
        """Events and standing alarms as plain JSON values, newest first, with ages in seconds; and what changes with
        them."""
        now_s = time.monotonic()
        with self._lock:
            for key, event in list(self._alarms.items()):
                if event.kind in _MOMENTS and now_s - event.at_s > _MOMENT_S:
                    del self._alarms[key]
            events, alarms, count = list(self._events), list(self._alarms.values()), self._count
        state: dict[str, object] = {
            "events": [_plain(event, now_s) for event in reversed(events)],
            "alarms": [_plain(event, now_s) for event in reversed(alarms)],
        }
        return state, (count, len(alarms))


def _family(event: Event) -> str:
    if event.kind in _ENDS:
        return _ENDS[event.kind]
    return event.kind if event.kind in _MOMENTS or event.kind in _ENDS.values() else _CAMERA


def _subject(event: Event, family: str) -> str:
    if family == _CAMERA:
        return event.kind
    return event.text.split(" ", 1)[0].rstrip(":,") if family in _WITH_SUBJECT else ""


def _plain(event: Event, now_s: float) -> dict[str, object]:
    return {
        "severity": event.severity,
        "text": printable(event.text),
        "camera": event.camera,
        "age_s": now_s - event.at_s,
        "stops_verdicts": event.severity == "error" and _family(event) == _CAMERA,
    }
