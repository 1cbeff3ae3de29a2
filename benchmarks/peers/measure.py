"""Runs one group of subjects, each in its own process, in interleaved rounds."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peers.environments import ROOT
from rdedge.text import EN_DASH
from rdedge_export.gate import DEFAULT_BUDGET
from rdedge_export.map_cosine import map_cosines

WORKER = Path(__file__).resolve().parent / "worker.py"
_PAUSE_S = 0.05  # lets the last subject's threads stop spinning
_COLLAPSED = 0.5  # a map cosine below this shows nothing of FP32's map


@dataclass(frozen=True, slots=True)
class Subject:
    """``spec``: of worker.py. ``is_reference``: the maps of those that follow are compared with its own."""

    name: str
    python: Path
    spec: dict[str, Any]
    is_reference: bool = False


@dataclass(slots=True)
class Measured:
    """Of one subject. ``maps``: (n, h, w) float32 of the small frames; ``first_s``: process start to first verdict."""

    maps: NDArray[np.float32]
    first_s: float
    times_ms: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


class Worker:
    """The process of one subject. A context manager: it ends with the block."""

    def __init__(self, subject: Subject, folder: Path, shared: dict[str, str]):
        maps = folder / "maps.npy"
        spec = subject.spec | shared | {"maps": str(maps)}
        path = os.pathsep.join(str(ROOT / part) for part in ("runtime", "train"))
        self._name, self._said = subject.name, folder / "stderr.txt"
        started = time.perf_counter()
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [str(subject.python), str(WORKER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path},
            )
        try:
            self._answer()
            first_s = time.perf_counter() - started
            self.ask()  # answered once the maps are written
            self.measured = Measured(np.load(maps).astype(np.float32), first_s)
        except BaseException:
            self.__exit__()
            raise

    def ask(self) -> float:
        """Milliseconds of one more verdict."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()["ms"]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code, said = self._process.wait(), self._said.read_text(errors="replace")
            raise SystemExit(f"{self._name} ended with exit code {code}:\n{said[-3000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """Ask for the peak memory, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.measured.peak_mb = self._answer()["peak_mb"]
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes and waits
            if self._process.poll() is None:
                self._process.kill()


def measure(subjects: list[Subject], folder: Path, shared: dict[str, str], rounds: int) -> dict[str, Measured]:
    """Starts them one after the other, then one verdict of each in turn, ``rounds`` times after three to warm up."""
    with ExitStack() as stack:
        workers = {}
        for index, subject in enumerate(subjects):
            own = folder / f"subject-{index}"
            own.mkdir(parents=True)
            workers[subject.name] = stack.enter_context(Worker(subject, own, shared))
        for index in range(3 + rounds):
            for worker in workers.values():
                time.sleep(_PAUSE_S)
                ms = worker.ask()
                if index >= 3:
                    worker.measured.times_ms.append(ms)
        for worker in workers.values():
            worker.end()
        return {name: worker.measured for name, worker in workers.items()}


def table(subjects: list[Subject], measured: dict[str, Measured], than: str) -> list[str]:
    """Rows: medians, how many times faster than ``than`` with its spread over rounds, maps, start, memory."""
    base = np.array(measured[than].times_ms)
    rows = [
        f"| subject | median ms | p95 ms | times faster than {than} (5 to 95 %) | largest map error | lowest map cosine"
        " | first verdict s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    references = reference_maps(subjects, measured)
    for subject in subjects:
        one = measured[subject.name]
        median, p95 = np.percentile(one.times_ms, [50, 95])
        low, middle, high = np.percentile(base / np.array(one.times_ms), [5, 50, 95])
        cells = [subject.name, f"{median:.1f}", f"{p95:.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        cells += _map_cells(one.maps, references[subject.name], is_reference=subject.is_reference)
        rows.append(f"| {' | '.join([*cells, f'{one.first_s:.2f}', f'{one.peak_mb:.0f}'])} |")
    return rows


def reference_maps(subjects: list[Subject], measured: dict[str, Measured]) -> dict[str, NDArray[np.float32]]:
    """By subject: the maps of the last reference up to it; the first subject is one."""
    maps = measured[subjects[0].name].maps
    references = {}
    for subject in subjects:
        if subject.is_reference:
            maps = measured[subject.name].maps
        references[subject.name] = maps
    return references


def map_error(maps: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[float, float]:
    """The largest difference from the reference's maps, and the lowest cosine with them, as the gate counts it."""
    return float(np.abs(maps - reference).max()), float(map_cosines(reference, maps).min())


def _map_cells(maps: NDArray[np.float32], reference: NDArray[np.float32], *, is_reference: bool) -> tuple[str, str]:
    if is_reference:
        return "reference", EN_DASH
    error, cosine = map_error(maps, reference)
    remark = ""
    if cosine < DEFAULT_BUDGET.map_cosine:
        remark = " collapsed" if cosine < _COLLAPSED else " beyond the gate's budget"
    return f"{error:.1e}", f"{cosine:.4f}{remark}"
