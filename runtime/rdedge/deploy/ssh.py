"""The workstation's end of a deploy: ssh as the user set it up, and rsync where both sides have it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rdedge.deploy.messages import GO, Answer, File, Order, decode_answer, encode
from rdedge.errors import DeployError, UsageError
from rdedge.text import printable

# Nothing may wait for an answer at a terminal, or for a board that is gone. The user's own options come first and win.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_END_S = 60.0
_SSH_FAILED, _NOT_FOUND = 255, 127


class Board:
    """Where to: ``address`` as ssh takes it, ``ssh``: the command for it, ``rdedge``: the program there."""

    def __init__(self, address: str, *, ssh: str = "ssh", rdedge: str = "/opt/rdedge/venv/bin/rdedge"):
        """Raises UsageError for what would be read as an option or a path."""
        if not address or address.startswith("-") or any(c in address for c in " :/") or not address.isprintable():
            raise UsageError(
                f"{printable(address)!r} is no board's address",
                remedy="give user@host, or the name of a Host in ~/.ssh/config, where a port can stand",
            )
        self.address = address
        self._ssh = [*shlex.split(ssh), *(part for option in _OPTIONS for part in ("-o", option))]
        self._rdedge = rdedge

    @contextmanager
    def ordered(self, order: Order) -> Iterator[Conversation]:
        """The board at work on an order. Leaving it ends the connection, not what the board has begun."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self._command(shlex.join([self._rdedge, "receive"])),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            assert process.stdin is not None and process.stdout is not None
            talk = Conversation(self, process, errors)
            try:
                talk.send(encode(order))
                yield talk
            finally:
                with suppress(OSError):
                    process.stdin.close()
                with suppress(subprocess.TimeoutExpired):  # the board goes on by itself
                    process.wait(_END_S)
                process.kill()
                process.wait()
                process.stdout.close()

    def _command(self, remote: str) -> list[str]:
        return [*self._ssh, "--", self.address, remote]

    def rsync(self, bundle: Path, names: Sequence[str], folder: str) -> str | None:
        """These files of a bundle into a folder of the board; returns what it complained of if it failed."""
        options = ["--recursive", "--times", "--copy-links", "--protect-args", "--from0", "--files-from=-"]
        done = subprocess.run(
            ["rsync", *options, f"--rsh={shlex.join(self._ssh)}", f"{bundle}/", f"{self.address}:{folder}/"],
            input=b"\0".join(name.encode() for name in names),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return None if done.returncode == 0 else f"code {done.returncode}: {_last_words(done.stderr)}"

    def failure(self, what: str, code: int | None, stderr: bytes) -> DeployError:
        """One line of what ssh, or the program behind it, complained of."""
        if code == _NOT_FOUND:
            remedy = f"install rdedge on the board, or say with --rdedge where it is ({self._rdedge})"
        elif code == _SSH_FAILED and stderr.strip(b" @\r\n"):  # silent where a program there was killed
            remedy = f"make `ssh {self.address} true` work without a question first"
        else:
            remedy = "mend that on the board and deploy again; the line goes on as before"
        return DeployError(f"{self.address}: {what} (code {code}): {_last_words(stderr)}", remedy=remedy)


def _last_words(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip(" @\r\n")]
    return printable(" ".join(lines[-2:])) or "it said nothing"


class Conversation:
    """Answers come in order; the board says everything on stdout."""

    def __init__(self, board: Board, process: subprocess.Popen[bytes], errors: IO[bytes]):
        self._board = board
        self._process = process
        self._errors = errors
        self._is_left_alone = False  # the board has all it needs

    def send(self, data: bytes) -> None:
        """A board that is gone is told of by ``answer``."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def copy(self, bundle: Path, names: Sequence[str], folder: str, *, has_rsync: bool) -> str:
        """These files of a bundle to the board; returns by what. A board that takes no more is told of by ``answer``.

        Where rsync fails all goes over the connection that stands: it needs no second login, and the board's own
        end says why where it fails too; rsync may lose its other side's last words.
        """
        how = "ssh"
        if has_rsync and shutil.which("rsync") is not None:
            complaint = self._board.rsync(bundle, names, folder)
            if complaint is None:
                return "rsync"
            how = f"ssh, as rsync failed ({complaint})"
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            for name in names:
                data = (bundle / name).read_bytes()
                self._process.stdin.write(encode(File(name=name, size_bytes=len(data))) + data)
        return how

    def go(self) -> None:
        """All is copied."""
        self.send(GO)
        self._is_left_alone = True

    def answer(self) -> Answer:
        """The next one. Raises DeployError if the connection or the board's process ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            return decode_answer(line)
        code = self._process.wait()
        self._errors.seek(0)
        lost = self._board.failure("the board's end stopped without a word", code, self._errors.read())
        if not self._is_left_alone:
            raise lost
        raise DeployError(
            lost.problem,
            remedy="it may go on by itself: ask it with --status; another deploy mends what was cut off",
        )
