"""One line of the self-test's table, and how an error becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rdedge.errors import RdedgeError


@dataclass(frozen=True, slots=True)
class Result:
    """``has_passed`` None: this machine or line has nothing of the kind to test."""

    name: str
    has_passed: bool | None
    text: str

    @property
    def word(self) -> str:
        """As the table has it."""
        return {True: "pass", False: "FAIL", None: "none"}[self.has_passed]


def tried(name: str, look: Callable[[], str]) -> Result:
    """What a look finds; an error of ours fails it."""
    try:
        return Result(name, True, look())
    except RdedgeError as exc:
        return Result(name, False, str(exc))
