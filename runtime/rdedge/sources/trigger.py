"""Where triggers come from: UDP datagrams or lines of standard input, each with the name of the part."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from rdedge.errors import UsageError
from rdedge.sources.uri import Options
from rdedge.text import printable

_LONGEST_PART_ID = 128
_WAITING_TRIGGERS = 1000
_WAKE_S = 0.2


@dataclass(frozen=True, slots=True)
class Trigger:
    """One part at the camera. ``at_s``: when the trigger came, by ``time.monotonic``."""

    part_id: str
    at_s: float


class Triggers(Protocol):
    """Where triggers come from; lives longer than a connection to the camera, so that none goes by unseen."""

    def next(self, timeout_s: float) -> Trigger | None:
        """The oldest that was not taken; None when none came in time."""

    def overflow(self) -> int:
        """How many were thrown away since the last call, as too many waited."""

    @property
    def has_ended(self) -> bool:
        """Whether none will come any more."""

    def close(self) -> None:
        """May be called twice and from any thread."""


class _Inbox:
    """Triggers that a thread receives and another takes; parts without a name are numbered."""

    def __init__(self) -> None:
        self._waiting: deque[Trigger] = deque(maxlen=_WAITING_TRIGGERS)
        self._changed = threading.Condition()
        self._count = self._overflow = 0
        self.has_ended = False

    def put(self, text: str) -> None:
        at_s = time.monotonic()
        with self._changed:
            self._count += 1
            part_id = printable(text.strip())[:_LONGEST_PART_ID] or str(self._count)
            self._overflow += len(self._waiting) == _WAITING_TRIGGERS
            self._waiting.append(Trigger(part_id, at_s))
            self._changed.notify_all()

    def overflow(self) -> int:
        with self._changed:
            overflow, self._overflow = self._overflow, 0
            return overflow

    def end(self) -> None:
        with self._changed:
            self.has_ended = True
            self._changed.notify_all()

    def next(self, timeout_s: float) -> Trigger | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.has_ended, timeout_s)
            return self._waiting.popleft() if self._waiting else None


class UdpTriggers(_Inbox):
    """A datagram is a trigger, its text the part's name (UTF-8)."""

    def __init__(self, host: str, port: int):
        """Port 0 takes a free one, see ``port``. Raises UsageError where it cannot be had."""
        super().__init__()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind((host, port))
        except OSError as exc:
            self._socket.close()
            raise UsageError(f"triggers from udp:{host}:{port}: {exc.strerror}", remedy="name a free port") from exc
        self._socket.settimeout(_WAKE_S)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._receive, name="rdedge-trigger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.end()
        self._thread.join(10 * _WAKE_S)

    def _receive(self) -> None:
        with self._socket:
            while not self.has_ended:
                try:
                    data = self._socket.recv(4 * _LONGEST_PART_ID)
                except TimeoutError:
                    continue
                self.put(data.decode(errors="replace"))


class LineTriggers(_Inbox):
    """A line of standard input is a trigger, its text the part's name; the source ends with the input."""

    def __init__(self, descriptor: int = 0):
        super().__init__()
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._receive, name="rdedge-trigger", daemon=True)

    def next(self, timeout_s: float) -> Trigger | None:
        """Starts reading: a source that is only looked at takes nobody's input."""
        if self._thread.ident is None:
            self._thread.start()
        return super().next(timeout_s)

    def close(self) -> None:
        self.end()
        if self._thread.ident is not None:
            self._thread.join(10 * _WAKE_S)

    def _receive(self) -> None:
        """Not through ``sys.stdin``, whose lock a waiting thread would hold when Python exits."""
        rest = b""
        while not self.has_ended:
            try:
                if not select.select([self._descriptor], [], [], _WAKE_S)[0]:
                    continue
                data = os.read(self._descriptor, 4096)
            except OSError:  # a process started without standard input
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.put(line.decode(errors="replace"))
        if rest:
            self.put(rest.decode(errors="replace"))
        self.end()


def open_triggers(options: Options) -> Triggers:
    """``from=stdin`` or ``from=udp:HOST:PORT``. Raises UsageError."""
    origin = options.text("from", "")
    kind, _, rest = str(origin).partition(":")
    host, _, port = rest.rpartition(":")
    if origin == "stdin":
        return LineTriggers()
    if kind == "udp" and host and port.isascii() and port.isdigit() and int(port) < 1 << 16:
        return UdpTriggers(host.strip("[]"), int(port))
    raise UsageError(
        f"{options.shown}: triggers from {origin!r}", remedy="write #from=udp:127.0.0.1:7000 or #from=stdin"
    )
