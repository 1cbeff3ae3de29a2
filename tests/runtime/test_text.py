"""Names from a file system or a contract cannot break a line, a terminal or a JSON file."""

from __future__ import annotations

import os

import pytest

from rdedge.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("größe 検査.png", "größe 検査.png"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        (os.fsdecode(b"l\xe4nge"), "l\\udce4nge"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).encode() and len(printable(text).splitlines()) == 1
