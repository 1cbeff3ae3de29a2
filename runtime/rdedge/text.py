"""Text that any terminal, log or JSON file takes."""

from __future__ import annotations

EN_DASH = "\N{EN DASH}"  # stands where a table has no value


def printable(text: str) -> str:
    """One line, encodable: control characters and bytes of names that are not UTF-8 appear as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
