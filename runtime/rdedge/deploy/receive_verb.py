"""``rdedge receive``: what `rdedge deploy` starts on the board; one order from stdin, then a line of JSON a step."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from rdedge.deploy.board import carry_out
from rdedge.deploy.messages import (
    GO,
    MAX_LINE_BYTES,
    Answer,
    Order,
    Ready,
    Refused,
    Said,
    decode_file,
    decode_order,
    encode,
)
from rdedge.errors import DeployError, RdedgeError, UsageError

_ORDER_S = 60.0
_SILENT_S = 120.0  # within a file
_COPY_S = 3600.0  # a workstation that went without a word does not keep others out for ever
_STDIN, _STDOUT = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All else is in the order."""
    parser.add_argument(
        "--restricted",
        action="store_true",
        help="for a key that may deploy and nothing else: no commands, no line files by path, no rsync beside this",
    )


def execute(args: argparse.Namespace) -> int:
    """Returns 0, or 2 where the order could not be carried out: the reason goes to stdout like all else.

    Once the files are here the workstation may go: neither its hang-up nor a closed pipe ends the deploy.
    """
    if sys.stdin is None or os.isatty(_STDIN):
        raise UsageError("`rdedge receive` takes orders from `rdedge deploy`, not from people", remedy="run that")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)  # the line runs as another user and reads what we write
    channel = _Pipes(may_rsync=not args.restricted and shutil.which("rsync") is not None)
    try:
        order = decode_order(channel.read_line(_ORDER_S))
        if args.restricted:
            _check_rights(order)
        done = carry_out(order, channel)
    except RdedgeError as exc:
        channel.send(Refused(problem=exc.problem, remedy=exc.remedy))
        return 2
    except OSError as exc:  # before a line was found
        where = f"{exc.filename}: " if exc.filename else ""
        channel.send(Refused(problem=f"{where}{exc.strerror or exc}", remedy="check permissions on the board"))
        return 2
    channel.send(done)
    return 0


def _check_rights(order: Order) -> None:
    """Raises DeployError for what would let the holder of the key do more than deploy."""
    asked = {"--restart": order.restart, "--selftest": order.selftest}
    refused = [option for option, command in asked.items() if command is not None]
    if order.line is not None and "/" in order.line:
        refused.append("--line with a path")
    if refused:
        raise DeployError(
            f"this login may not give {', '.join(refused)}",
            remedy="leave that out, or log in as a user who may run commands on the board",
        )


class _Pipes:
    """stdin and stdout, unbuffered."""

    def __init__(self, *, may_rsync: bool) -> None:
        self._may_rsync = may_rsync
        self._unread = b""

    def say(self, text: str) -> None:
        """A step was made."""
        self.send(Said(text=text))

    def receive(self, folder: Path, limit_bytes: int) -> None:
        """Until the workstation says that all is copied. Raises DeployError, OSError."""
        self.send(Ready(folder=str(folder), has_rsync=self._may_rsync))
        while (line := self.read_line(_COPY_S)) != GO:
            file = decode_file(line)
            limit_bytes -= file.size_bytes
            if limit_bytes < 0:
                raise DeployError("more was sent than was announced", remedy="deploy again; nothing was changed")
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as f:  # an rsync that failed may have left one
                self._copy(f, file.size_bytes)

    def send(self, answer: Answer) -> None:
        """Nobody may be listening any more."""
        data = encode(answer)
        with suppress(OSError):
            while data:
                data = data[os.write(_STDOUT, data) :]

    def read_line(self, limit_s: float) -> bytes:
        """With its end. Raises DeployError if none comes."""
        deadline_s = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            if len(self._unread) > MAX_LINE_BYTES:
                raise DeployError("a line without an end was sent", remedy="run `rdedge deploy`")
            self._read_on(deadline_s - time.monotonic())
        line, end, self._unread = self._unread.partition(b"\n")
        return line + end

    def _copy(self, to: IO[bytes], size_bytes: int) -> None:
        while size_bytes:
            if not self._unread:
                self._read_on(_SILENT_S)
            data, self._unread = self._unread[:size_bytes], self._unread[size_bytes:]
            to.write(data)
            size_bytes -= len(data)

    def _read_on(self, limit_s: float) -> None:
        readable = select.select([_STDIN], [], [], max(0.0, limit_s))[0]
        data = os.read(_STDIN, MAX_LINE_BYTES) if readable else b""
        if not data:
            raise DeployError("the workstation went away", remedy="deploy again; nothing was changed")
        self._unread += data
