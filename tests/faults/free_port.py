"""A port for a server that a test is about to start."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import suppress

# Below those that Linux gives out by itself, so that nobody else takes one before its server has it.
_PORTS = itertools.cycle(random.sample(range(20_000, 32_768), k=12_768))


def free_port() -> int:
    """A port of loopback, TCP and UDP, that nobody has; another one each time."""
    while True:
        port = next(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)), socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", port))
            return port
