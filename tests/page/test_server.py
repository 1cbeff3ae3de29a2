"""The page's server gives its own files, to those who may have them, and answers nothing else."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest
from page_visitor import ask, connect, get, read_all

from rdedge.inspector import Inspection
from rdedge.page import OperatorPage
from rdedge.page.files import PAGE_FILES

MakePart = Callable[..., Inspection]
OpenPage = Callable[..., OperatorPage]
WaitUntil = Callable[[Callable[[], bool]], None]
TOKEN = "a token of length"


def test_every_file_is_there_and_names_no_other_place(page: OperatorPage) -> None:
    for path, file in PAGE_FILES.items():
        status, headers, body = get(page, path)
        assert (status, body, headers["content-type"]) == (200, file.data, file.content_type)
        places = set(re.findall(r"https?://[^\s\"']+", body.decode()))
        assert places <= {"http://www.w3.org/2000/svg"}, "works without internet"


def test_every_answer_keeps_the_browser_to_our_files(page: OperatorPage) -> None:
    for path in ("/", "/page.js", "/picture/0/1", "/nothing"):
        _, headers, _ = get(page, path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["server"] == "rdedge", "no version of Python"


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/static/page.js",
        "//etc/passwd",
        "/page.js/",
        "/page.js%00.css",
        "/files.py",
        "/picture/0/1/../../../etc/passwd",
        "/picture/-1/1",
        "/picture/0/99999999999999999999",
        "/picture/\u0660/1",
        "/picture/0/live/",
        "http://127.0.0.1/page.js",
        "*",
        "/welcome",
        "welcome",
    ],
)
def test_there_is_nothing_but_the_fixed_routes(page: OperatorPage, path: str, make_part: MakePart) -> None:
    page.sink("top").write(make_part())
    status, _, body = ask(page, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 404) and len(body) < 40


def test_a_picture_that_is_not_kept_is_no_content(page: OperatorPage, make_part: MakePart) -> None:
    sink = page.sink("top")
    assert get(page, "/picture/0/live")[0] == 204
    sink.write(make_part(9))
    status, headers, body = get(page, "/picture/0/live")
    assert (status, headers["x-part"]) == (200, "1") and b'"index":9' in body
    assert [get(page, f"/picture/{path}")[0] for path in ("0/1", "0/2", "1/live", "9999/1")] == [204] * 4


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_changed(page: OperatorPage, method: str) -> None:
    status, headers, _ = ask(page, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 405 and headers["allow"] == "GET" and headers["connection"] == "close"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        ("GET / HTTP/3.7\r\nHost: localhost\r\n\r\n", 505),
        ("GET / HTTP/1.1 extra\r\nHost: localhost\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (f"GET /{'a' * 20000} HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (f"GET / HTTP/1.1\r\nHost: localhost\r\nX: {'a' * 20000}\r\n\r\n", 431),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n" + "X: a\r\n" * 5000 + "\r\n", 431),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else None,
)
def test_requests_that_no_browser_of_ours_makes_are_refused(page: OperatorPage, request_head: str, status: int) -> None:
    got, _, body = ask(page, request_head)
    assert got == status and (len(body) < 60 and b"evil" not in body and b"aaa" not in body)


def test_another_site_may_link_to_the_page_and_no_more(page: OperatorPage) -> None:
    for site, statuses in {"cross-site": [200, 403], "same-site": [200, 403], "same-origin": [200, 200]}.items():
        assert [get(page, path, f"Sec-Fetch-Site: {site}")[0] for path in ("/", "/page.js")] == statuses


def test_a_connection_takes_one_request_after_another(page: OperatorPage) -> None:
    one = b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(page) as visitor:
        visitor.sendall(one * 200)
        visitor.shutdown(socket.SHUT_WR)
        assert read_all(visitor).count(b"HTTP/1.1 200 OK") == 200


def test_without_the_token_there_is_only_the_login(open_page: OpenPage, make_part: MakePart) -> None:
    page = open_page(token=TOKEN)
    page.sink("secret-camera").write(make_part())
    status, headers, body = get(page, "/")
    assert status == 401 and headers["www-authenticate"] == "Bearer" and b'id="token"' in body
    for path in ("/page.js", "/events", "/picture/0/1", "/login", "/?token=wrong", "/nothing", "/page.html"):
        status, _, body = get(page, path)
        assert status == 401 and b"secret-camera" not in body, path
    assert [get(page, path)[0] for path in ("/page.css", "/icon.svg", "/login.js")] == [200] * 3


def test_the_token_in_a_header_or_once_in_the_address_gives_a_cookie(open_page: OpenPage) -> None:
    page = open_page(token=TOKEN)
    _, by_header, _ = get(page, "/login", f"Authorization: Bearer {TOKEN}")
    status, by_address, body = get(page, f"/?token={TOKEN.replace(' ', '%20')}")
    assert status == 200 and by_header["set-cookie"] == by_address["set-cookie"]
    assert TOKEN.encode() not in body and by_address["referrer-policy"] == "no-referrer"
    cookie = by_header["set-cookie"].partition(";")[0]
    assert get(page, "/page.js", f"Cookie: {cookie}")[0] == 200
    assert get(page, "/page.js", f"Authorization: Bearer {TOKEN}")[0] == 200
