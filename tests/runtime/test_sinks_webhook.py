"""The webhook against a real HTTP server that fails in every way a server can."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from free_port import free_port
from sink_parts import TIMEOUT_S, inspection, wait_until

from rdedge.errors import UsageError
from rdedge.events import Event
from rdedge.sinks.webhook import WebhookSink

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Keeps what it gets; behaves as the server's first fault says, one fault a request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None:
            fault(self)
            return
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        self.server.paths.append(self.path)
        self.answer(200)

    def answer(self, status: int, body: bytes = b"ok", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """On a port of loopback."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.faults: list[Fault] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections = 0
        self.ends = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?line=7"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is part of the tests."""

    def ids(self) -> list[str]:
        return [record["id"] for body in self.bodies for record in json.loads(body)["verdicts"]]

    def stop(self) -> None:
        self.ends.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


MakeSink = Callable[..., WebhookSink]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, events: list[Event]) -> Iterator[MakeSink]:
    opened: list[WebhookSink] = []

    def open_sink(url: str, **options: object) -> WebhookSink:
        plain = {"session": "s", "camera": "top", "on_event": events.append}
        times = {"timeout_s": TIMEOUT_S, "drain_s": TIMEOUT_S}
        opened.append(WebhookSink(url=url, spool=tmp_path / "spool", **plain | times | options))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()


def test_records_are_posted_in_batches_over_one_connection(server: Server, make: MakeSink) -> None:
    sink = make(server.url)
    for index in range(120):
        sink.write(inspection(index, size_hw=(16, 16)))
    sink.event(Event(kind="silent", severity="error", text="no frame", camera="top"))
    sink.close()
    assert server.ids() == [f"s/top/{i}" for i in range(120)]
    alarms = [alarm for body in server.bodies for alarm in json.loads(body)["alarms"]]
    assert [alarm["kind"] for alarm in alarms] == ["silent"]
    assert max(len(json.loads(body)["verdicts"]) for body in server.bodies) <= 50
    assert set(server.paths) == {"/hook?line=7"} and server.connections == 1
    assert server.headers[0]["Content-Type"] == "application/json"


def test_the_signature_is_that_of_timestamp_and_body(server: Server, make: MakeSink) -> None:
    sink = make(server.url, secret="gehëim")
    sink.write(inspection(1))
    sink.close()
    (body,), (headers,) = server.bodies, server.headers
    timestamp = headers["X-Rdedge-Timestamp"]
    expected = hmac.new("gehëim".encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["X-Rdedge-Signature"] == f"v1={expected}"
    assert abs(datetime.now(timezone.utc).timestamp() - int(timestamp)) < 60


def test_without_a_secret_nothing_is_signed(server: Server, make: MakeSink) -> None:
    sink = make(server.url)
    sink.write(inspection(1))
    sink.close()
    assert not [name for name in server.headers[0] if name.startswith("X-Rdedge")]


def redirect(handler: Handler) -> None:
    handler.answer(301, Location="http://127.0.0.1:1/elsewhere")


def reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def say_nothing(handler: Handler) -> None:
    handler.server.ends.wait()
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then: no single read ever takes too long."""
    handler.close_connection = True
    try:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
            handler.connection.sendall(bytes([byte]))
            time.sleep(0.1)
    except OSError:
        pass


def talk_nonsense(handler: Handler) -> None:
    handler.connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def promise_more(handler: Handler) -> None:
    handler.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("fault", "timeout_s", "told"),
    [
        (lambda handler: handler.answer(500), TIMEOUT_S, "500 Internal Server Error"),
        (lambda handler: handler.answer(401), TIMEOUT_S, "401 Unauthorized"),
        (redirect, TIMEOUT_S, "301 Moved Permanently: redirects are not followed"),
        (reset, TIMEOUT_S, "Connection reset by peer|Remote end closed connection"),
        (say_nothing, 1.0, r"timed out|no whole answer within 1\.0 s"),
        (drip, 1.0, r"timed out|no whole answer within 1\.0 s"),
        (talk_nonsense, TIMEOUT_S, "SSH-2.0"),
    ],
    ids=["500", "401", "301", "reset", "silent", "dripping", "nonsense"],
)
def test_a_fault_is_told_once_and_the_records_come_again(
    server: Server, make: MakeSink, events: list[Event], fault: Fault, timeout_s: float, told: str
) -> None:
    server.faults = [fault, fault]
    sink = make(server.url, timeout_s=timeout_s)
    sink.write(inspection(1))
    wait_until(lambda: sink.outbox.counts.delivered == 1)
    sink.write(inspection(2))
    sink.close()
    assert server.ids() == ["s/top/1", "s/top/2"]
    assert [event.kind for event in events] == ["sink-away", "sink-back"]
    assert re.search(told, events[0].text), events[0].text


def test_half_an_answer_of_success_is_success(server: Server, make: MakeSink, events: list[Event]) -> None:
    server.faults = [promise_more]
    sink = make(server.url)
    for index in range(2):
        sink.write(inspection(index))
        wait_until(lambda index=index: sink.outbox.counts.delivered == index + 1)
    assert server.ids() == ["s/top/1"] and events == []


def test_an_endless_answer_is_cut_off(server: Server, make: MakeSink) -> None:
    server.faults = [lambda handler: handler.answer(200, b"x" * 1_000_000)]
    sink = make(server.url)
    for index in range(2):
        sink.write(inspection(index))
        wait_until(lambda index=index: sink.outbox.counts.delivered == index + 1)
    assert server.connections == 2 and server.ids() == ["s/top/1"]


def test_a_server_that_closes_idle_connections_costs_nothing(
    server: Server, make: MakeSink, events: list[Event]
) -> None:
    def close_after(handler: Handler) -> None:
        handler.server.bodies.append(b'{"verdicts": []}')
        handler.answer(200)
        handler.close_connection = True

    server.faults = [close_after]
    sink = make(server.url)
    for index in range(2):
        sink.write(inspection(index))
        wait_until(lambda index=index: sink.outbox.counts.delivered == index + 1)
        time.sleep(0.1)
    sink.close()
    assert server.ids() == ["s/top/1"]
    assert events == []


def test_a_server_that_comes_later_gets_everything(make: MakeSink, events: list[Event]) -> None:
    port = free_port()
    sink = make(f"http://127.0.0.1:{port}/")
    for index in range(100):
        sink.write(inspection(index, size_hw=(16, 16)))
    wait_until(lambda: bool(events))
    server = Server(port)
    try:
        wait_until(lambda: sink.outbox.waiting == 0)
        assert server.ids() == [f"s/top/{i}" for i in range(100)]
    finally:
        server.stop()


def test_closing_does_not_wait_for_a_server_that_hangs(server: Server, make: MakeSink) -> None:
    server.faults = [say_nothing] * 100
    sink = make(server.url, timeout_s=1000.0, drain_s=0.1)
    sink.write(inspection(1))
    wait_until(lambda: server.connections == 1)
    started_s = time.monotonic()
    sink.close()
    assert time.monotonic() - started_s < TIMEOUT_S / 2
    assert sink.outbox.waiting == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "host/x", "http://", "https://a:b@host/", "http://host:port/", "http://hóst/", "http://h:99999/"],
)
def test_what_is_no_address_is_refused(make: MakeSink, tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"webhook .*; name it as https://host:port/path"):
        make(url)
    assert not (tmp_path / "spool").exists()
