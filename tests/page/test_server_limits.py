"""The page's server against hostile and clumsy visitors: refused, bounded, and never felt by the line."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
from page_visitor import ask, connect, first_state, get, read_all, visitors

from rdedge.errors import UsageError
from rdedge.inspector import Inspection
from rdedge.page import OperatorPage
from rdedge.page.server import MAX_CONNECTIONS, MAX_STREAMS

MakePart = Callable[..., Inspection]
OpenPage = Callable[..., OperatorPage]
WaitUntil = Callable[[Callable[[], bool]], None]
TOKEN = "a token of length"


def test_visitors_beyond_the_limit_are_turned_away(
    page: OperatorPage, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr("rdedge.page.bounded.REQUEST_S", 3600.0)
    crowd = [connect(page) for _ in range(MAX_CONNECTIONS)]
    wait_until(lambda: visitors() == MAX_CONNECTIONS)
    late = [connect(page) for _ in range(20)]
    for visitor in late:
        assert read_all(visitor).startswith(b"HTTP/1.1 503 ")
    assert visitors() == MAX_CONNECTIONS
    for visitor in (*crowd, *late):
        visitor.close()
    wait_until(lambda: visitors() == 0)
    assert get(page, "/")[0] == 200


def test_streams_beyond_the_limit_are_turned_away(page: OperatorPage, wait_until: WaitUntil) -> None:
    crowd = [connect(page) for _ in range(MAX_STREAMS)]
    for visitor in crowd:
        visitor.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert visitor.recv(17).startswith(b"HTTP/1.1 200 OK")
    assert get(page, "/events")[0] == 503 and get(page, "/page.js")[0] == 200
    for visitor in crowd:
        visitor.close()
    wait_until(lambda: visitors() == 0)
    assert first_state(page)["cameras"] == []


def test_a_visitor_who_dribbles_is_cut_off(
    page: OperatorPage, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr("rdedge.page.bounded.REQUEST_S", 0.5)
    with connect(page) as visitor, connect(page) as idle:
        visitor.settimeout(0.05)

        def is_cut_off() -> bool:
            try:
                visitor.send(b"G")
                return visitor.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_cut_off)
        assert read_all(idle) == b""
    wait_until(lambda: visitors() == 0)
    monkeypatch.undo()
    assert first_state(page)["events"] == []


def test_a_visitor_who_does_not_read_is_given_no_second_message(
    page: OperatorPage, monkeypatch: pytest.MonkeyPatch, make_part: MakePart, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr("rdedge.page.server._SEND_S", 0.5)
    asked = 0
    news = OperatorPage.news

    def counted(self: OperatorPage, seen: dict[str, int]) -> object:
        nonlocal asked
        asked += 1
        return news(self, seen)

    monkeypatch.setattr(OperatorPage, "news", counted)
    sink = page.sink("x" * 200_000)  # a message beyond what the two sockets hold
    sink.write(make_part())
    with connect(page, receive_bytes=4096) as visitor:
        visitor.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: asked >= 1 and visitors() == 0)
        assert asked == 1
    with connect(page, receive_bytes=4096) as visitor:
        monkeypatch.setattr("rdedge.page.server._SEND_BUFFER_BYTES", 1 << 20)  # the kernel holds it
        visitor.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: asked >= 2 and visitors() == 0)
        assert asked == 2


def test_a_thousand_broken_requests_leave_no_trace(page: OperatorPage, wait_until: WaitUntil) -> None:
    rng = random.Random(5)
    good = b"GET /picture/0/1?token=x HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: a=b\r\nAuthorization: Bearer x\r\n\r\n"
    alphabet = [b"\r\n", b"\0", b":", b" ", b"%", b"\xff", b"/..", b"HTTP/", b"Content-Length: 9", b"Host: x", b"\n\n"]
    statuses = set()
    for _ in range(1000):
        request = bytearray(good)
        for _ in range(rng.randrange(1, 12)):
            place = rng.randrange(len(request) + 1)
            if rng.random() < 0.5:
                request[place:place] = rng.choice(alphabet) * rng.choice((1, 1, 1, 40))
            else:
                request[place : place + rng.randrange(1, 30)] = rng.randbytes(rng.randrange(4))
        statuses.add(ask(page, bytes(request))[0])
    wait_until(lambda: visitors() == 0)
    assert statuses <= {0, 200, 204, 400, 404, 405, 414, 421, 431, 501, 505} and {204, 400, 404, 421} <= statuses
    state = first_state(page)
    assert (state["events"], state["alarms"]) == ([], []), "no thread of ours failed"


def test_a_fault_of_ours_is_told_and_ends_one_connection_only(
    page: OperatorPage, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(OperatorPage, "picture", lambda self, camera, number: 1 // 0)
    assert get(page, "/picture/0/1")[0] == 0
    monkeypatch.undo()
    (alarm,) = first_state(page)["alarms"]  # type: ignore[misc]
    assert alarm["text"] == "the operator page failed: ZeroDivisionError: integer division or modulo by zero"


def test_closing_ends_every_connection_and_frees_the_port(
    open_page: OpenPage, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdedge.page.bounded.REQUEST_S", 3600.0)
    page = open_page()
    port = int(page.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(
        UsageError, match=rf"cannot be opened at 127.0.0.1 port {port} \(Address already in use\); end "
    ):
        open_page(port=port)
    with connect(page) as idle, connect(page) as stream:
        stream.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(17).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: visitors() == 2)
        page.close()
        page.close()
        assert read_all(idle) == b""
        wait_until(lambda: visitors() == 0)
    open_page(port=port)


def has_ipv6() -> bool:
    """Whether this machine's loopback has an IPv6 address; many a container's has none."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(("bind", "url"), [("localhost", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_a_name_or_an_ipv6_address_will_do(open_page: OpenPage, bind: str, url: str) -> None:
    if ":" in bind and not has_ipv6():
        bind, url = "127.0.0.1", "http://127.0.0.1:"
    page = open_page(bind=bind)
    assert page.url.startswith((url, "http://[::1]:"))


@pytest.mark.parametrize(("bind", "port"), [("no.such.name.invalid", 0), ("203.0.113.9", 0), ("127.0.0.1", 70000)])
def test_an_address_that_is_not_ours_is_refused(open_page: OpenPage, bind: str, port: int) -> None:
    with pytest.raises(UsageError, match=r"the operator page cannot be opened at .*; (end|name) "):
        open_page(bind=bind, port=port, token=TOKEN)
