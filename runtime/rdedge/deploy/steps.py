"""Commands that a deploy runs on the board, each to its end or its time limit, with nothing of them lost."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rdedge.backends import BackendName, engine_arguments
from rdedge.contract import Precision
from rdedge.errors import DeployError
from rdedge.text import printable

_TAIL_BYTES = 100_000
_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(what: str, command: str | Sequence[str], *, limit_s: float, remedy: str) -> list[str]:
    """A program, or a string for the shell; returns the lines it printed. Raises DeployError unless it returns 0.

    A program is one of ours and the line's guest: it ends with us, and makes room for the line. A shell's command may
    leave something running: the output goes to a file, not to a pipe that would have to be waited for.
    """
    is_guest = not isinstance(command, str)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            shell=not is_guest,
            cwd="/" if is_guest else None,  # `python -m` imports from the folder it is started in
            preexec_fn=_be_a_guest if is_guest else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except BaseException as exc:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise DeployError(f"{what} took longer than {limit_s:.0f} s", remedy=remedy) from exc
            raise
        output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = output.read().decode(errors="replace")
    lines = [printable(line.strip()) for line in text.splitlines() if line.strip()]
    if code != 0:
        how = f"was killed by signal {-code}" if code < 0 else f"failed with code {code}"
        said = lines[-1].removeprefix("rdedge: error: ") if lines else "it said nothing"
        raise DeployError(f"{what} {how}: {said}", remedy=remedy)
    return lines


def _be_a_guest() -> None:
    """Of the running line, as rdedge-engine@.service is: behind it where processors are short, first to be killed where
    memory is. It does not go on for hours behind the back of the next deploy if we are killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(5)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:  # a container may hide it
        f.write("500")


def engine_command(bundle: Path, backend: BackendName, precision: Precision) -> list[str] | None:
    """What builds the engine that a line will open; None: it needs none."""
    arguments = engine_arguments(bundle, backend, precision)
    return None if arguments is None else [sys.executable, "-m", "rdedge", *arguments]


def trial_command(bundle: Path, backend: BackendName, precision: Precision, max_reject_rate: float) -> list[str]:
    """See rdedge.deploy.trial."""
    return [sys.executable, "-m", "rdedge.deploy.trial", str(bundle), backend, precision, str(max_reject_rate)]
