"""Where inspections go."""

from __future__ import annotations

from typing import Protocol

from rdedge.inspector import Inspection


class Sink(Protocol):
    """Takes inspections in order, from one thread. A sink makes its files when the first inspection comes."""

    def write(self, inspection: Inspection) -> None:
        """Deliver one inspection. Raises SinkError."""

    def close(self) -> None:
        """Flush and release; may be called twice. Raises SinkError."""
