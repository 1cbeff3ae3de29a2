"""What a sink is to the line."""

from __future__ import annotations

from typing import Protocol

from rdedge.events import Event
from rdedge.inspector import Inspection


class Sink(Protocol):
    """Takes inspections in order, from one thread. A sink of files makes them when the first inspection comes.

    What is not on this machine (a broker, a PLC, a server) being away is no error: it is told by an event, once a
    change, and what it missed is kept or counted as the sink states.
    """

    def write(self, inspection: Inspection) -> None:
        """Take one inspection. Raises SinkError for a fault of this machine."""

    def close(self) -> None:
        """Flush and release; may be called twice. Raises SinkError."""


class AlarmSink(Sink, Protocol):
    """A sink that also forwards what happens to the line."""

    def event(self, event: Event) -> None:
        """Take one event; from any thread."""
