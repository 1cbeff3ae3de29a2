"""A whole measurement: cold starts, the steady line, parts after idle gaps, and what the device's events say."""

from __future__ import annotations

import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rdedge.backends import BackendName
from rdedge.bench.cold import start_cold
from rdedge.bench.frames import Feed, Pace, PacedSource
from rdedge.bench.machine import device_used_mb, machine, versions
from rdedge.bench.measure import device_parts, run_phase
from rdedge.bench.memory import peak_memory_mb
from rdedge.bench.record import SCHEMA_VERSION, WHOLE, Memory, Phase, Record
from rdedge.bench.tegra import BoardSample, Tegrastats
from rdedge.bundle import open_bundle
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.inspector import Inspector
from rdedge.sinks import JsonLinesSink, OverlaySink, Sink
from rdedge.sinks.record import new_session
from rdedge.stream import Policy

GAP_PARTS = 20  # as many as p95 needs
_DEVICE_FRAMES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. ``pace``: one, max, or frames a second; None: one, or a camera's own."""

    bundle: Path
    source: str | None = None
    precision: Precision = "fp32"
    backend: BackendName = "onnxruntime"
    frames: int = 1000
    warm_up: int = 50
    pace: str | None = None
    idle_gap_s: float | None = None
    keeps_warm: bool = False
    cold_starts: int = 5


def measure(plan: Plan) -> Record:
    """Raises RdedgeError. Verdicts and pictures of rejects go into a temporary folder, through the line's own sinks."""
    bundle = open_bundle(plan.bundle)
    feed = Feed(bundle, plan.source)
    pace_name, pace, policy = _pace(plan.pace, is_live=feed.is_live)
    subject = machine() | {
        "bundle": bundle.contract.contract_sha256[:12],
        "model": bundle.contract.model.name,
        "precision": plan.precision,
        "backend": plan.backend,
        "frames": feed.described,
        "offered": pace_name,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }
    notes = [f"load average before: {os.getloadavg()[0]:.2f}"]
    cold_ms: list[float] = []
    run_peak_mb = None
    if plan.cold_starts:
        options = ["--backend", plan.backend, "--precision", plan.precision]
        cold_ms, run_peak_mb = start_cold(bundle.path, feed.pictures, options, plan.cold_starts)
    has_gpu = plan.backend.startswith("tensorrt")
    before_mb = device_used_mb() if has_gpu else 0.0
    with Inspector.open(bundle.path, backend=plan.backend, precision=plan.precision) as inspector:
        held_mb = device_used_mb() - before_mb if has_gpu else None
        with Tegrastats() as board:
            source = PacedSource(feed.open, plan.warm_up + plan.frames, pace)
            phases = [_run(f"steady, {pace_name}", inspector, source, policy, plan.warm_up, board.samples)]
            if plan.idle_gap_s is not None:
                phases += _gaps(plan, inspector, feed, board.samples)
        parts = device_parts(inspector, min(plan.frames, _DEVICE_FRAMES))
    return Record(
        schema_version=SCHEMA_VERSION,
        date_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join(["rdedge", *sys.argv[1:]]),
        subject=subject,
        versions=versions(plan.backend),
        notes=(*notes, *_notes(plan, phases)),
        phases=tuple(phases),
        device_parts_ms=parts,
        cold_start_ms=[round(ms, 2) for ms in cold_ms],
        memory=Memory(bench_peak_mb=peak_memory_mb(), run_peak_mb=run_peak_mb, device_mb=held_mb),
    )


def _pace(text: str | None, *, is_live: bool) -> tuple[str, Pace, Policy]:
    """How frames are offered: its name, when they come, and what becomes of those that find no room."""
    if is_live:
        return "as the camera gives them, newest wins", Pace(), "latest"
    if text in (None, "one"):
        return "one at a time", Pace(after_verdict_s=0.0), "every"
    if text == "max":
        return "through a full queue", Pace(), "every"
    try:
        fps = float(text or "")
    except ValueError:
        fps = 0.0
    if not 0.0 < fps < math.inf:
        raise UsageError(f"--pace {text}", remedy="give one, max, or frames a second")
    return f"{fps:g} frames/s, newest wins", Pace(interval_s=1.0 / fps), "latest"


def _gaps(plan: Plan, inspector: Inspector, feed: Feed, board: list[BoardSample]) -> Iterator[Phase]:
    """Parts so far apart that clocks fall asleep; the last phase also with the engine kept running."""
    assert plan.idle_gap_s is not None
    for keeps_warm in (False, True) if plan.keeps_warm else (False,):
        name = f"a part every {plan.idle_gap_s:g} s" + (", kept warm" if keeps_warm else "")
        source = PacedSource(feed.open, GAP_PARTS, Pace(after_verdict_s=plan.idle_gap_s))
        yield _run(name, inspector, source, "every", 0, board, keeps_warm=keeps_warm)


def _run(
    name: str,
    inspector: Inspector,
    source: PacedSource,
    policy: Policy,
    warm_up: int,
    board: list[BoardSample],
    *,
    keeps_warm: bool = False,
) -> Phase:
    with _sinks(inspector) as sinks:
        return run_phase(
            name, inspector, source, sinks, policy=policy, warm_up=warm_up, keeps_warm=keeps_warm, board=board
        )


@contextmanager
def _sinks(inspector: Inspector) -> Iterator[list[Sink]]:
    """Those of `rdedge run --out`, closed at the end."""
    session = new_session()
    with tempfile.TemporaryDirectory(prefix="rdedge-bench-") as folder:
        sinks: list[Sink] = [
            JsonLinesSink(Path(folder) / "verdicts.jsonl", session),
            OverlaySink(Path(folder) / "rejects", inspector.bundle.contract.input.roi_xywh),
        ]
        try:
            yield sinks
        finally:
            for sink in sinks:
                sink.close()


def _notes(plan: Plan, phases: list[Phase]) -> Iterator[str]:
    """What a reader must know to read the numbers right."""
    if plan.backend == "onnxruntime":
        yield "onnxruntime computes in the host's memory: nothing is uploaded or downloaded, engine is the inference"
    if plan.pace == "max":
        yield "the queue is kept full, so capture to verdict includes waiting behind other frames"
    if plan.cold_starts and plan.source is not None:
        yield "cold starts were measured with pictures of the bundle, not with the source"
    steady = sorted(phases[0].times_ms.get(WHOLE, []))
    for phase in phases[1:]:
        slow = sorted(phase.times_ms.get(WHOLE, []))
        if steady and slow:
            ratio = slow[len(slow) // 2] / steady[len(steady) // 2]
            yield f"{phase.name}: median {ratio:.2f} times the steady one"
