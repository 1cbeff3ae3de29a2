"""``rdedge receive``: what `rdedge deploy` starts on the board; one order from stdin, then a line of JSON a step."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from rdedge.deploy.board import carry_out
from rdedge.deploy.messages import GO, MAX_LINE_BYTES, Answer, Ready, Refused, Said, decode_order, encode
from rdedge.errors import DeployError, RdedgeError, UsageError

_ORDER_S = 60.0
_COPY_S = 3600.0  # a workstation that went without a word does not keep others out for ever
_STDIN, _STDOUT = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: all is in the order."""


def execute(args: argparse.Namespace) -> int:
    """Returns 0, or 2 where the order could not be carried out: the reason goes to stdout like all else.

    Once the files are here the workstation may go: neither its hang-up nor a closed pipe ends the deploy.
    """
    if sys.stdin is None or os.isatty(_STDIN):
        raise UsageError("`rdedge receive` takes orders from `rdedge deploy`, not from people", remedy="run that")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)  # the line runs as another user and reads what we write
    channel = _Pipes()
    try:
        done = carry_out(decode_order(channel.read_line(_ORDER_S)), channel)
    except RdedgeError as exc:
        channel.send(Refused(problem=exc.problem, remedy=exc.remedy))
        return 2
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        remedy = "check permissions and the disk's space on the board"
        channel.send(Refused(problem=f"{where}{exc.strerror or exc}", remedy=remedy))
        return 2
    channel.send(done)
    return 0


class _Pipes:
    """stdin and stdout, unbuffered."""

    def __init__(self) -> None:
        self._unread = b""

    def say(self, text: str) -> None:
        """A step was made."""
        self.send(Said(text=text))

    def receive(self, folder: Path, has_rsync: bool) -> None:
        """Until the workstation says that all is copied. Raises DeployError."""
        self.send(Ready(folder=str(folder), has_rsync=has_rsync))
        if self.read_line(_COPY_S) != GO:
            raise DeployError("the files were not all copied", remedy="deploy again; nothing was changed")

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
            left_s = deadline_s - time.monotonic()
            readable = select.select([_STDIN], [], [], max(0.0, left_s))[0]
            data = os.read(_STDIN, MAX_LINE_BYTES) if readable else b""
            if not data or len(self._unread) > MAX_LINE_BYTES:
                raise DeployError("the workstation went away", remedy="deploy again; nothing was changed")
            self._unread += data
        line, end, self._unread = self._unread.partition(b"\n")
        return line + end
