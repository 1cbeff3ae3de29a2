"""A visitor of the operator page who speaks HTTP by hand."""

from __future__ import annotations

import json
import socket
import threading
import time

from rdedge.page import OperatorPage

WAIT_S = 30.0


def connect(page: OperatorPage, receive_bytes: int | None = None) -> socket.socket:
    port = int(page.url.rstrip("/").rpartition(":")[2])
    visitor = socket.socket()
    visitor.settimeout(WAIT_S)
    if receive_bytes is not None:
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    visitor.connect(("127.0.0.1", port))
    return visitor


def read_all(visitor: socket.socket) -> bytes:
    data, until_s = b"", time.monotonic() + WAIT_S
    try:
        while more := visitor.recv(65536):
            data += more
            assert time.monotonic() < until_s, "it does not end"
    except ConnectionResetError:  # closed with some of our bytes unread
        pass
    return data


def ask(page: OperatorPage, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of what comes back until the connection ends; status 0: nothing."""
    with connect(page) as visitor:
        try:
            visitor.sendall(request.encode("latin-1") if isinstance(request, str) else request)
            visitor.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass  # refused before all of it was sent
        data = read_all(visitor)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1]) if lines[0] else 0
    return status, {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}, body


def get(page: OperatorPage, path: str, *lines: str) -> tuple[int, dict[str, str], bytes]:
    return ask(page, "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "Connection: close", "", ""]))


def visitors() -> int:
    return sum(thread.name == "rdedge-page-visitor" for thread in threading.enumerate())


def first_state(page: OperatorPage) -> dict[str, object]:
    with connect(page) as visitor:
        visitor.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = b""
        while data.count(b"\n\n") < 1:
            more = visitor.recv(65536)
            assert more, data
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head
    state: dict[str, object] = json.loads(body.partition(b"data: ")[2].partition(b"\n\n")[0])
    return state
