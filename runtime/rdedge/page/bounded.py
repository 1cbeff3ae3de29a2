"""What a visitor may cost: so many bytes and so much time a request, and no more unread answers than one."""

from __future__ import annotations

import fcntl
import io
import socket
import struct
import termios
import time

MAX_REQUEST_BYTES = 16384
REQUEST_S = 10.0  # to send a request, or to let a connection idle


class TooLarge(Exception):
    """A request beyond MAX_REQUEST_BYTES."""


class BoundedReader(io.RawIOBase):
    """Bytes of a connection, so many and for so long a request: a visitor who dribbles holds its thread no longer."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.begin()

    def begin(self) -> None:
        """A new request."""
        self._left_bytes, self._until_s = MAX_REQUEST_BYTES, time.monotonic() + REQUEST_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left_s = self._until_s - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError
        if self._left_bytes <= 0:
            raise TooLarge
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer)
        self._left_bytes -= count
        return count


def unsent_bytes(connection: socket.socket) -> int:
    """What the visitor's machine has not acknowledged yet (man 7 tcp: SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))
    return int(count)
