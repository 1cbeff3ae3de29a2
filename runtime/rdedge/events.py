"""What happens to the line besides verdicts: faults, recoveries, warnings, each told once per change of state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from rdedge.text import printable

Severity = Literal["info", "warning", "error"]


def _now_utc() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state of a camera, a sink or the stream.

    ``kind``: a short word such as ``silent`` or ``recovered``; ``camera``: the name of the line's camera, "" for what
    concerns all; ``at_s``: seconds of ``time.monotonic``; ``at_utc``: the same moment for logs; ``ends``: of
    ``recovered``, the kinds of the camera's faults that are over.
    """

    kind: str
    severity: Severity
    text: str
    camera: str
    at_s: float = field(default_factory=time.monotonic)
    at_utc: datetime = field(default_factory=_now_utc)
    ends: tuple[str, ...] = ()


EventHandler = Callable[[Event], None]


def tell(event: Event) -> None:
    """The handler where no other is given: a line on stderr, if the process has one."""
    if sys.stderr is not None:
        where = f"{event.camera}: " if event.camera else ""
        print(f"rdedge: {event.severity}: {printable(where + event.text)}", file=sys.stderr, flush=True)
