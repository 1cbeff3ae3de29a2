"""Who may see the page: nobody from elsewhere without the token, no name but this machine's, no way to find it out."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from email.message import Message

import pytest

from rdedge.errors import UsageError
from rdedge.page import OperatorPage
from rdedge.page.guard import Guard

TOKEN = "0123456789abcdef"


def headers(**values: str) -> Message:
    message = Message()
    for name, value in values.items():
        message[name] = value
    return message


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.7", "::", "fe80::1"])
def test_an_address_that_others_reach_needs_a_token(address: str) -> None:
    with pytest.raises(UsageError, match=r"can be seen by others on the network; give it a token: python3 -c"):
        Guard(address, 8360, None)
    Guard(address, 8360, TOKEN)


def test_loopback_needs_none() -> None:
    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        assert Guard(address, 8360, None).admits(headers())


@pytest.mark.parametrize("token", ["", "0123456789abcde", "0123456789abcdé", "0123456789abcde\n"])
def test_a_poor_token_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="expected 16 or more of ASCII; use a token: python3"):
        Guard("127.0.0.1", 8360, token)


def test_a_poor_token_opens_no_port(open_page: Callable[..., OperatorPage]) -> None:
    with pytest.raises(UsageError, match="has 5 characters"):
        open_page(token="short")
    with pytest.raises(UsageError, match="seen by others"):
        open_page(bind="0.0.0.0")


def test_the_token_or_its_cookie_is_admitted_and_nothing_else() -> None:
    guard = Guard("0.0.0.0", 8360, TOKEN)
    cookie = guard.cookie().partition(";")[0]
    name, _, secret = cookie.partition("=")
    assert TOKEN not in cookie and "HttpOnly" in guard.cookie() and "SameSite=Strict" in guard.cookie()
    assert guard.admits(headers(Authorization=f"Bearer {TOKEN}"))
    assert guard.admits(headers(Cookie=cookie)) and guard.admits(headers(Cookie=f"a=b; {cookie}; c=d"))
    assert guard.admits_query(f"token={TOKEN}")
    for refused in (
        headers(),
        headers(Authorization=TOKEN),
        headers(Authorization="Bearer "),
        headers(Authorization=f"Basic {TOKEN}"),
        headers(Authorization=f"Bearer {TOKEN}x"),
        headers(Authorization=f"Bearer {TOKEN[:-1]}"),
        headers(Authorization="Bearer ÿ" + TOKEN),
        headers(Cookie=f"{name}={TOKEN}"),
        headers(Cookie=f"other={secret}"),
        headers(Cookie=f"{name}="),
        headers(Cookie=";;;=;" * 100),
    ):
        assert not guard.admits(refused), refused.items()
    for query in ("", "token=", f"token={TOKEN}&token={TOKEN}", f"token={TOKEN}%00", "token=%ff", "a=1&" * 100):
        assert not guard.admits_query(query), query
    assert not Guard("127.0.0.1", 8360, None).admits_query("token=")


def test_the_cookie_outlives_a_restart_and_not_the_token() -> None:
    cookie = headers(Cookie=Guard("0.0.0.0", 8360, TOKEN).cookie().partition(";")[0])
    assert Guard("0.0.0.0", 8360, TOKEN).admits(cookie)
    assert not Guard("0.0.0.0", 8360, TOKEN.upper()).admits(cookie)
    assert not Guard("0.0.0.0", 8361, TOKEN).admits(cookie), "another line's page on this machine"


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    guard = Guard("0.0.0.0", 8360, TOKEN)
    name = guard.cookie().partition("=")[0]
    guard.admits(headers(Authorization="Bearer wrong", Cookie=f"{name}=wrong"))
    guard.admits_query("token=wrong")
    assert [left for left, _ in compared] == [b"wrong"] * 3


def test_a_host_is_an_address_or_this_machine() -> None:
    guard = Guard("127.0.0.1", 8360, None)
    own = socket.gethostname()
    known = ["127.0.0.1", "127.0.0.1:8360", "localhost", "LOCALHOST:9000", "192.168.1.7:80", "[::1]:8360", "[::1]"]
    for host in (*known, own, f"{own}:8360", f"{own}.local"):
        assert guard.knows_host(host), host
    for host in (
        "evil.example",
        "evil.example:8360",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        ":",
        "[",
        "a]",
    ):
        assert not guard.knows_host(host), host


def test_a_machine_may_be_named_by_digits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "123456789012")
    guard = Guard("127.0.0.1", 8360, None)
    for host in ("123456789012", "123456789012:8360", "123456789012.local", "[::1]:8360", "[::1]"):
        assert guard.knows_host(host), host
    assert not guard.knows_host("123456789013") and not guard.knows_host(":8360")
