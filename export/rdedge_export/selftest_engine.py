"""Self-test of engines: they build, answer like ONNX Runtime, and keep their pace while the device gets warm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, BackendName, Prediction, batches, infer_all, open_backend
from rdedge.backends.cuda import CudaDevice
from rdedge.backends.trt import TensorRtBackend, open_engine
from rdedge.backends.trt_library import load_tensorrt, version_of
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.engines import ENGINES_FOLDER, EngineRecord, Flavour
from rdedge.errors import BackendError, UsageError
from rdedge_export.cpu_engine import prove
from rdedge_export.engine_build import build_engine
from rdedge_export.selftest_result import Result, tried

_WARM_UP_FRAMES = 20
_SAME_SHARE = 1e-3  # of the largest map value: one engine's answers to one frame, but for the order of additions
_MAX_SLOWDOWN = 1.5  # median of the last fifth to that of the first: beyond it, clocks fall as the device gets hot
_MAX_REJECT_SHARE = 0.2  # of the bundle's own good parts, of which thresholds reject a few in a hundred


def examine_engines(bundle: Bundle, flavour: Flavour, seconds: float, dla_core: int | None) -> Iterator[Result]:
    """Device, library, then of each precision of the bundle build and numbers, pace, and two frames in flight; the same
    on DLA, where ``dla_core`` or an engine in the bundle asks for it.

    A failure ends its part.
    """
    for name, look in (("GPU", _gpu), (flavour, lambda: version_of(load_tensorrt(flavour)))):
        result = tried(name, look)
        yield result
        if not result.has_passed:
            return
    for precision in bundle.contract.precisions:
        yield from _examine_engine(bundle, precision, flavour, seconds, None)
    pairs = dla_engines_of(bundle) if dla_core is None else [(_dla_precision(bundle), dla_core)]
    if not pairs:
        yield Result("DLA", None, "no engine of the bundle uses it; --dla 0 builds one")
    for precision, core in pairs:
        yield from _examine_engine(bundle, precision, flavour, seconds, core)


def examine_cpu(bundle: Bundle, backend: BackendName, seconds: float) -> Iterator[Result]:
    """ONNX Runtime or OpenVINO, where it is the line's engine: of each precision answers and pace.

    OpenVINO is measured against FP32 first, and its proof is left in the bundle, as engines are.
    """
    for precision in bundle.contract.precisions:
        if backend == "openvino" and precision != "fp32":
            proven = tried(f"{precision} distance", partial(_prove, bundle, precision))
            yield proven
            if not proven.has_passed:
                continue
        answers = tried(f"{precision} answers", partial(_answers, bundle, precision, backend))
        yield answers
        if answers.has_passed:
            yield tried(f"{precision} pace", partial(_pace, bundle, precision, backend, seconds))


def dla_engines_of(bundle: Bundle) -> list[tuple[Precision, int]]:
    """Precision and DLA core of the engines in the bundle that use one, whatever device they are for."""
    names = [path.stem for path in (bundle.path / ENGINES_FOLDER).glob("*-dla[01].json")]  # see EngineKey.name
    precisions = [precision for precision in bundle.contract.precisions if precision != "fp32"]
    return sorted({(p, int(name[-1])) for name in names for p in precisions if name.startswith(f"{p}-")})


def _dla_precision(bundle: Bundle) -> Precision:
    """FP16 where there is one: not every TensorRT takes quantised graphs to DLA. FP32 is refused with what helps."""
    return next((precision for precision in ("fp16", "int8") if precision in bundle.contract.precisions), "fp32")


def _examine_engine(
    bundle: Bundle, precision: Precision, flavour: Flavour, seconds: float, dla_core: int | None
) -> Iterator[Result]:
    where = precision if dla_core is None else f"{precision} DLA {dla_core}"
    backend = _backend_name(flavour, dla_core)
    built = tried(f"{where} engine", partial(_build, bundle, precision, flavour, dla_core))
    yield built
    if built.has_passed:
        yield tried(f"{where} pace", partial(_pace, bundle, precision, backend, seconds))
        yield tried(f"{where} in flight", partial(_in_flight, bundle, precision, flavour, seconds / 4, dla_core))


def _backend_name(flavour: Flavour, dla_core: int | None) -> BackendName:
    if dla_core is None:
        return flavour
    return "tensorrt-dla0" if dla_core == 0 else "tensorrt-dla1"


def _gpu() -> str:
    device = CudaDevice()
    return f"{device.name}, SM {device.compute_capability}"


def _build(bundle: Bundle, precision: Precision, flavour: Flavour, dla_core: int | None) -> str:
    record, was_built = build_engine(
        bundle,
        precision,
        flavour,
        workspace_mb=None,
        dla_core=dla_core,
        if_needed=True,
        progress=lambda phase, done, steps: None,
        say=lambda text: None,
    )
    on_dla = "" if dla_core is None else f", {len(record.dla_layers)} of {len(record.layer_precisions)} layers on DLA"
    return f"{'built' if was_built else 'kept'}, {_numbers(record)}{on_dla}"


def _numbers(record: EngineRecord) -> str:
    worst = max(record.check.p999_map_share, record.check.max_score_share)
    return f"within {worst:.2%} of ONNX Runtime on {record.check.frames} good parts"


def _prove(bundle: Bundle, precision: Precision) -> str:
    proof, was_measured = prove(bundle, precision, if_needed=True, say=lambda text: None)
    how = "measured" if was_measured else "kept"
    return f"{how}, map cosine {proof.map_cosine:.4f} to FP32, {proof.flipped} of {proof.frames} verdicts flip"


def _answers(bundle: Bundle, precision: Precision, backend_name: BackendName) -> str:
    """Good parts of the bundle must pass, and a frame get the same answer twice. Raises RdedgeError."""
    frames_u8 = bundle.calibration_frames()
    batch = bundle.contract.graph.batch
    with closing(open_backend(bundle, backend=backend_name, precision=precision)) as backend:
        image_threshold, _ = backend.thresholds or (bundle.precision_spec(precision).image_threshold, None)
        scores = infer_all(backend, frames_u8, batch).score
        again = float(infer_all(backend, frames_u8[:1], batch).score[0])
    threshold = image_threshold.value
    above = int((scores > threshold).sum())
    text = f"{above} of {len(scores)} good parts above the threshold {threshold:.4g}, scores up to {scores.max():.4g}"
    if not np.isfinite(scores).all() or above > max(1.0, _MAX_REJECT_SHARE * len(scores)):
        raise BackendError(text, remedy=f"update or change {backend_name}, and report it")
    if abs(again - scores[0]) > _SAME_SHARE * threshold:
        raise BackendError(
            f"one frame scored {scores[0]:.4g}, then {again:.4g}", remedy="check the memory of this machine"
        )
    return text


def _pace(bundle: Bundle, precision: Precision, backend_name: BackendName, seconds: float) -> str:
    """Frames one after the other for some time. Raises BackendError, UsageError where the device slows down."""
    frames_u8 = _calls(bundle)
    with closing(open_backend(bundle, backend=backend_name, precision=precision)) as backend:
        times_ms = _times_ms(backend, frames_u8, seconds)
        cuda_graph = backend.cuda_graph if isinstance(backend, TensorRtBackend) else None
    p50, p95, p99 = np.percentile(times_ms, [50, 95, 99])
    text = f"{len(times_ms)} {_unit(bundle)}: p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms from frame to answer"
    if cuda_graph is not None:
        text += f"; CUDA graph {cuda_graph}" if cuda_graph == "replayed" else f"; no CUDA graph ({cuda_graph})"
    fifth = max(1, len(times_ms) // 5)
    slowdown = float(np.median(times_ms[-fifth:]) / np.median(times_ms[:fifth]))
    if slowdown > _MAX_SLOWDOWN:
        raise UsageError(f"{text}; {slowdown:.1f} times slower at the end", remedy="cool the device, or fix its clocks")
    return text


def _in_flight(bundle: Bundle, precision: Precision, flavour: Flavour, seconds: float, dla_core: int | None) -> str:
    """Two frames at a time must get the answers that each gets alone. Raises BackendError, UsageError."""
    frames_u8 = _calls(bundle)
    with closing(open_engine(bundle, precision, flavour, dla_core=dla_core, frames_in_flight=2)) as backend:
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
    batch = bundle.contract.graph.batch
    return "frames" if batch == 1 else f"batches of {batch}"


def _calls(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """The calibration frames as the engine takes them, so many at a time as it is for: uint8 (N, H, W, 3) each."""
    batch = bundle.contract.graph.batch
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
