"""``rdedge selftest``: what only the device can show: engines build, answer like ONNX Runtime, and keep their pace."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, Prediction, batches
from rdedge.backends.cuda import CudaDevice
from rdedge.backends.trt import open_engine
from rdedge.backends.trt_library import load_tensorrt, version_of
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Precision
from rdedge.engines import EngineRecord, Flavour
from rdedge.errors import RdedgeError, UsageError
from rdedge.text import printable
from rdedge_export.engine_build import build_engine

_WARM_UP_FRAMES = 20
_SAME_SHARE = 1e-3  # of the largest map value: one engine's answers to one frame, but for the order of additions
_MAX_SLOWDOWN = 1.5  # median of the last fifth to that of the first: beyond it, clocks fall as the device gets hot


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    name: str
    has_passed: bool
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `rdedge export --out` made")
    parser.add_argument("--backend", choices=get_args(Flavour), default="tensorrt", help="library (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of load an engine (%(default)s)")


def execute(args: argparse.Namespace) -> int:
    """Prints each result as it comes; 0 if all have passed, else 2. Raises BundleError, UsageError."""
    if not args.seconds > 0:
        raise UsageError(f"--seconds {args.seconds}", remedy="give a time above zero")
    results = []
    for result in examine(open_bundle(args.bundle), args.backend, args.seconds):
        print(f"{'pass' if result.has_passed else 'FAIL'}  {result.name:<14}  {printable(result.text)}", flush=True)
        results.append(result)
    failed = sum(not result.has_passed for result in results)
    print(f"\n{len(results) - failed} passed, {failed} failed")
    return 2 if failed else 0


def examine(bundle: Bundle, flavour: Flavour, seconds: float) -> Iterator[Result]:
    """Device, library, then of each precision of the bundle build and numbers, pace, and two frames in flight.

    A failure ends its part.
    """
    for name, look in (("GPU", _gpu), (flavour, lambda: version_of(load_tensorrt(flavour)))):
        result = _tried(name, look)
        yield result
        if not result.has_passed:
            return
    for precision in bundle.contract.precisions:
        built = _tried(f"{precision} engine", partial(_build, bundle, precision, flavour))
        yield built
        if built.has_passed:
            yield _tried(f"{precision} pace", partial(_pace, bundle, precision, flavour, seconds))
            yield _tried(f"{precision} in flight", partial(_in_flight, bundle, precision, flavour, seconds / 4))


def _tried(name: str, look: Callable[[], str]) -> Result:
    try:
        return Result(name, True, look())
    except RdedgeError as exc:
        return Result(name, False, str(exc))


def _gpu() -> str:
    device = CudaDevice()
    return f"{device.name}, SM {device.compute_capability}"


def _build(bundle: Bundle, precision: Precision, flavour: Flavour) -> str:
    record, was_built = build_engine(
        bundle,
        precision,
        flavour,
        workspace_mb=None,
        if_needed=True,
        progress=lambda phase, done, steps: None,
        say=lambda text: None,
    )
    return f"{'built' if was_built else 'kept'}, {_numbers(record)}"


def _numbers(record: EngineRecord) -> str:
    worst = max(record.check.p999_map_share, record.check.max_score_share)
    return f"within {worst:.2%} of ONNX Runtime on {record.check.frames} good parts"


def _pace(bundle: Bundle, precision: Precision, flavour: Flavour, seconds: float) -> str:
    """Frames one after the other for some time. Raises BackendError, UsageError where the device slows down."""
    frames_u8 = _calls(bundle)
    with closing(open_engine(bundle, precision, flavour)) as backend:
        times_ms = _times_ms(backend, frames_u8, seconds)
        cuda_graph = backend.cuda_graph
    p50, p95, p99 = np.percentile(times_ms, [50, 95, 99])
    text = f"{len(times_ms)} {_unit(bundle)}: p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms from frame to answer"
    text += f"; CUDA graph {cuda_graph}" if cuda_graph == "replayed" else f"; no CUDA graph ({cuda_graph})"
    fifth = max(1, len(times_ms) // 5)
    slowdown = float(np.median(times_ms[-fifth:]) / np.median(times_ms[:fifth]))
    if slowdown > _MAX_SLOWDOWN:
        raise UsageError(f"{text}; {slowdown:.1f} times slower at the end", remedy="cool the device, or fix its clocks")
    return text


def _in_flight(bundle: Bundle, precision: Precision, flavour: Flavour, seconds: float) -> str:
    """Two frames at a time must get the answers that each gets alone. Raises BackendError, UsageError."""
    frames_u8 = _calls(bundle)
    with closing(open_engine(bundle, precision, flavour, frames_in_flight=2)) as backend:
        alone = [backend.infer(frame_u8) for frame_u8 in frames_u8]
        worst, finished, started_s = 0.0, 0, time.monotonic()
        backend.start(frames_u8[0])
        while finished < len(alone) or time.monotonic() < started_s + seconds:
            backend.start(frames_u8[(finished + 1) % len(alone)])
            worst = max(worst, _difference_share(backend.finish(), alone[finished % len(alone)]))
            finished += 1
        per_s = finished / (time.monotonic() - started_s)
        backend.finish()
    text = f"{finished} {_unit(bundle)} two at a time: {per_s:.0f} a second, within {worst:.2%} of one at a time"
    if not worst <= _SAME_SHARE:
        raise UsageError(text, remedy="run lines with --in-flight 1 here, and report it")
    return text


def _unit(bundle: Bundle) -> str:
    batch = bundle.contract.graph.frame.shape[0]
    return "frames" if batch == 1 else f"batches of {batch}"


def _calls(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """The calibration frames as the engine takes them, so many at a time as it is for: uint8 (N, H, W, 3) each."""
    batch = bundle.contract.graph.frame.shape[0]
    return [batch_u8 for batch_u8, _ in batches(bundle.calibration_frames(), batch)]


def _difference_share(got: Prediction, expected: Prediction) -> float:
    peak = max(float(np.abs(expected.anomaly_map).max()), 1e-6)
    worst_map = float(np.abs(got.anomaly_map - expected.anomaly_map).max())
    return max(worst_map, float(np.abs(got.score - expected.score).max())) / peak


def _times_ms(backend: Backend, frames_u8: list[NDArray[np.uint8]], seconds: float) -> list[float]:
    """At least one frame's; the first frames are not counted."""
    times_ms: list[float] = []
    ends_s = time.monotonic() + seconds
    index = -_WARM_UP_FRAMES
    while index < 1 or time.monotonic() < ends_s:
        frame_u8 = frames_u8[index % len(frames_u8)]
        started_s = time.perf_counter()
        backend.infer(frame_u8)
        if index >= 0:
            times_ms.append((time.perf_counter() - started_s) * 1e3)
        index += 1
    return times_ms
