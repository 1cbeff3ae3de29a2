"""Addresses of cameras: their parts, their options, and their text without the password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from rdedge.errors import UsageError

_SECRET_OPTIONS = r"(?i)([?&](?:password|passwd|pass|pwd|token|secret|key|auth)=)[^&#]*"


@dataclass(frozen=True, slots=True)
class Options:
    """``?name=value&...`` of one address, read by name; ``shown`` is the address for messages."""

    shown: str
    values: dict[str, str]

    def text(self, name: str, default: str | None = None) -> str | None:
        return self.values.get(name, default)

    def number(self, name: str, *, above: float = 0.0) -> float | None:
        """A finite number greater than ``above``; None where it is not given. Raises UsageError."""
        text = self.values.get(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not above < value < float("inf"):
            raise UsageError(f"{self.shown}: {name} is {text!r}", remedy=f"give a number above {above:g}")
        return value

    def count(self, name: str) -> int | None:
        """A whole number of at least 1; None where it is not given. Raises UsageError."""
        value = self.number(name)
        if value is None:
            return None
        if value != int(value):
            raise UsageError(f"{self.shown}: {name} is {value:g}", remedy="give a whole number")
        return int(value)


def masked(uri: str) -> str:
    """The address with its passwords as ``***``; everything up to the last @ counts, as a password may hold any sign.

    A user without a password stays.
    """
    shown = re.sub(r"(://[^:/@?#]*):.*@", r"\1:***@", uri)
    return re.sub(_SECRET_OPTIONS, r"\1***", shown)


def device_of(uri: str, *, known: tuple[str, ...]) -> tuple[str, Options]:
    """``scheme://DEVICE?option=value`` -> device and options. Raises UsageError for options that are not ``known``."""
    parts = urlsplit(uri)
    device = unquote(parts.netloc + parts.path)
    return device, options_of(parts.query, masked(uri), known=known)


def options_of(query: str, shown: str, *, known: tuple[str, ...]) -> Options:
    """``name=value&...`` -> Options. Raises UsageError for one that is unknown or stands twice."""
    pairs = parse_qsl(query, keep_blank_values=True)
    values = dict(pairs)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"{shown}: no option {', '.join(unknown)}", remedy=f"it knows {', '.join(known)}")
    if len(values) != len(pairs):
        raise UsageError(f"{shown}: an option stands twice", remedy="give each once")
    return Options(shown, values)


def host_and_port(uri: str) -> tuple[str, int | None]:
    """Of a network address; None where it names no port. Raises UsageError where there is no host or no such port."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise UsageError(f"{masked(uri)}: no address ({exc})", remedy="write SCHEME://host:port/path") from exc
    if not host:
        raise UsageError(f"{masked(uri)}: no host", remedy="write SCHEME://host:port/path")
    return host, port
