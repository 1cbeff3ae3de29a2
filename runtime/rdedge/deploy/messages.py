"""What the two ends of a deploy say to each other: one order, then a line of JSON for each thing that happens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rdedge.contract import check_file_name
from rdedge.errors import DeployError

PROTOCOL: Literal[1] = 1
MAX_LINE_BYTES = 1 << 16

VersionName = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
LineName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_./-]{1,4096}$")]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: immutable, all keys required unless it says otherwise, no other keys."""


class Order(_Message, frozen=True):
    """What the board is to do. ``line``: a name, of ``/etc/rdedge/NAME.toml``, or the path of a line's file; None: the
    only one there. ``restart``, ``selftest``: shell commands, None: the usual."""

    protocol: Literal[1]
    action: Literal["deploy", "rollback", "status"]
    owner: Text  # who asks, for whoever is refused meanwhile
    line: LineName | None = None
    version: VersionName | None = None  # of deploy
    size_bytes: Annotated[int, Meta(ge=0)] = 0
    restart: Text | None = None
    selftest: Text | None = None
    watch_s: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    max_reject_rate: Annotated[float, Meta(ge=0, le=1)] = 0.5
    keep: Annotated[int, Meta(ge=1, le=100)] = 3


class Ready(_Message, frozen=True, tag="ready"):
    """The board waits for the files in ``folder``, by rsync where it has it, or here as Files; and then for GO."""

    folder: str
    has_rsync: bool


class File(_Message, frozen=True):
    """So many bytes follow, which are a file of the bundle."""

    name: str  # below the folder
    size_bytes: Annotated[int, Meta(ge=0)]

    def __post_init__(self) -> None:
        check_file_name(self.name)


class Said(_Message, frozen=True, tag="said"):
    """A step was made."""

    text: str


class Refused(_Message, frozen=True, tag="refused"):
    """It failed; the problem says what the line runs now."""

    problem: str
    remedy: str


class Done(_Message, frozen=True, tag="done"):
    """All is done. ``report``: of status."""

    text: str
    report: dict[str, Any] | None = None


Answer = Ready | Said | Refused | Done
GO = b"go\n"


def encode(message: Order | File | Answer) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises DeployError."""
    try:
        protocol = msgspec.json.decode(line, type=dict[str, msgspec.Raw]).get("protocol")
        if protocol is not None and bytes(protocol) != str(PROTOCOL).encode():
            raise DeployError(
                f"the board takes orders of form {PROTOCOL}, got one of form {bytes(protocol).decode()[:20]}",
                remedy="install the same rdedge on both machines",
            )
        return msgspec.json.decode(line, type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DeployError(f"not an order of `rdedge deploy` ({exc})", remedy="run `rdedge deploy`") from exc


def decode_file(line: bytes) -> File:
    """Raises DeployError."""
    try:
        return msgspec.json.decode(line, type=File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DeployError(f"no file of a bundle was announced ({exc})", remedy="run `rdedge deploy`") from exc


def decode_answer(line: bytes) -> Answer:
    """Raises DeployError."""
    try:
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        shown = line[:200].decode(errors="replace").strip()
        raise DeployError(
            f"the board said {shown!r}, which is no answer of `rdedge receive`",
            remedy="install the same rdedge on both machines, and keep its shell's start files silent",
        ) from exc
