"""Tells systemd how the service is: sd_notify's datagrams, without its library.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Does nothing where the process was not started by a service manager."""

    def __init__(self, environment: Mapping[str, str] = os.environ):
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: Linux's abstract names
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
        is_ours = usec.isdecimal() and pid == str(os.getpid())
        self.watchdog_s = int(usec) / 1e6 if is_ours and int(usec) > 0 else None
        self._fed_s = float("-inf")

    def ready(self) -> None:
        """The engine is loaded and the cameras are being read."""
        self._send(f"READY=1\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """What waits is judged and flushed."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """The file is read again; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``."""
        self._send(f"STATUS={text}".replace("\n", " "))

    def feed(self) -> None:
        """Feeds the watchdog, at most ten times within its time."""
        now_s = time.monotonic()
        if self.watchdog_s is not None and now_s - self._fed_s >= self.watchdog_s / 10:
            self._fed_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
            datagram.setblocking(False)  # a manager that does not listen must not stop the line
            datagram.sendto(text.encode(), self._address)
