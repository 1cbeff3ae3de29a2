"""The cold start: a fresh `rdedge run`, from the start of its process to its first verdict, and its peak memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import BackendError

_VERDICTS = ("good", "REJECT")  # as `rdedge run` prints them
# `python -m rdedge`, which tells its own peak at its end: one who looks from outside comes before it or too late.
_CHILD = """
import sys
from rdedge.cli import main
code = main(sys.argv[1:])
from rdedge.bench.memory import peak_memory_mb
print(peak_memory_mb())
sys.exit(code)
"""


def start_cold(
    bundle: Path, pictures: list[NDArray[np.uint8]], options: list[str], times: int
) -> tuple[list[float], float]:
    """Milliseconds to the first verdict of each start, and the highest peak of resident memory in MB.

    Each judges all the pictures, so that the peak is a running line's. Files are in the system's cache from the first
    start on, if not before. Raises BackendError where a run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        for index, picture in enumerate(pictures):
            cv2.imwrite(f"{folder}/{index:03d}.png", picture)
        arguments = ["run", str(bundle), "--source", folder, *options]
        runs = [run_cold(sys.executable, arguments) for _ in range(times)]
    return [ms for ms, _ in runs], max(mb for _, mb in runs)


def run_cold(python: str | Path, arguments: list[str]) -> tuple[float, float]:
    """One `rdedge run`: milliseconds from its start to its first verdict, and its peak of resident memory in MB.

    Raises BackendError where the run fails.
    """
    started = time.perf_counter()
    first_ms, last = None, ""
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [str(python), "-c", _CHILD, *arguments], stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as child,
    ):
        assert child.stdout is not None
        for last in child.stdout:
            if first_ms is None and any(word in last.split() for word in _VERDICTS):
                first_ms = (time.perf_counter() - started) * 1e3
        if child.wait() != 0 or first_ms is None:
            complaints.seek(0)
            said = " ".join(complaints.read().split())[-300:]
            raise BackendError(
                f"`rdedge {' '.join(arguments)}` ended with {child.returncode} ({said or 'it said nothing'})",
                remedy="run it by hand, or leave the cold start out with --cold-starts 0",
            )
    return first_ms, float(last)
