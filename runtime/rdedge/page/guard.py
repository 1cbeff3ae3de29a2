"""Who may see the operator page: loopback, or whoever has the token; and only under a name that is this machine's."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from email.message import Message
from urllib.parse import parse_qs

from rdedge.errors import UsageError

MIN_TOKEN_CHARS = 16
_COOKIE_S = 30 * 24 * 3600


class Guard:
    """Decides on requests; keeps nothing.

    The cookie is derived from the token and is not the token, so a panel stays logged in when the line restarts, and is
    logged out by another token. Every comparison takes the same time wherever the strings differ.
    """

    def __init__(self, address: str, port: int, token: str | None):
        """``address``: the IP address bound to. Raises UsageError where it needs a (better) token."""
        if token is None and not ipaddress.ip_address(address).is_loopback:
            raise UsageError(
                f"the operator page on {address} can be seen by others on the network", remedy=f"give it {_A_TOKEN}"
            )
        if token is not None and (len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable()):
            raise UsageError(
                f"the operator page's token has {len(token)} characters, expected {MIN_TOKEN_CHARS} or more of ASCII",
                remedy=f"use {_A_TOKEN}",
            )
        self._token = None if token is None else token.encode()
        self._cookie_name = f"rdedge_page_{port}"  # browsers share cookies between the ports of a host
        host = socket.gethostname().lower()
        self._names = {"localhost", host, f"{host}.local", host.partition(".")[0]}

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this machine by address or by its own name.

        Any other name may be one that an attacker's page made to point here (DNS rebinding); an address cannot be.
        """
        before, colon, port = host.rpartition(":")
        name = before if colon and port.isdecimal() else host
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return True

    def admits(self, headers: Message) -> bool:
        """Whether a request carries the token (``Authorization: Bearer``) or its cookie, or needs none."""
        if self._token is None:
            return True
        kind, _, given = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return True
        pairs = (item.strip().partition("=") for item in headers.get("Cookie", "").split(";"))
        return any(name == self._cookie_name and _equal(value, self._secret()) for name, _, value in pairs)

    def admits_query(self, query: str) -> bool:
        """Whether ``?token=`` is right: for a panel that starts with an address."""
        try:
            values = parse_qs(query, max_num_fields=4, errors="strict").get("token", [])
        except ValueError:
            return False
        return len(values) == 1 and self._is_token(values[0])

    def cookie(self) -> str:
        """The value of Set-Cookie for somebody who gave the token."""
        return f"{self._cookie_name}={self._secret()}; Max-Age={_COOKIE_S}; Path=/; HttpOnly; SameSite=Strict"

    def _is_token(self, given: str) -> bool:
        return self._token is not None and _equal(given, self._token.decode())

    def _secret(self) -> str:
        return hmac.new(self._token or b"", b"rdedge operator page", hashlib.sha256).hexdigest()


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode())


_A_TOKEN = """a token: python3 -c "import secrets; print(secrets.token_urlsafe())" makes one"""
