"""Measures a precision of a bundle in OpenVINO on this machine: is it near enough to FP32, how fast, its thresholds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, batches, infer_all, open_backend
from rdedge.backends.openvino import OpenVinoBackend, proof_key
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.cpu_proof import Proof, ProofKey, read_proof, write_proof
from rdedge.engines import ENGINES_FOLDER
from rdedge.errors import BackendError, UsageError
from rdedge.fidelity import Gate
from rdedge.sealed import UNSEALED
from rdedge.threshold import fit_thresholds, refit_method
from rdedge_export.engine_build import only_builder
from rdedge_export.map_cosine import map_cosines

_WARM_UP_CALLS = 5
_LEAST_CALLS = 40  # timed, of each engine


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of one engine on n frames: maps float32 (n, H, W), scores float32 (n,), and the median time of a call."""

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    median_ms: float


def prove(bundle: Bundle, precision: Precision, *, if_needed: bool, say: Callable[[str], None]) -> tuple[Proof, bool]:
    """The proof for this machine, and whether it was measured now. ``if_needed``: keep one that holds.

    Where another process is building or measuring, waits: times taken beside it would mislead.

    Raises BackendError beyond the gate's budget, MissingExtraError, BundleError, UsageError, OSError; an older proof
    stays then.
    """
    gate = bundle.precision_spec(precision).gate
    if gate is None:
        raise UsageError(
            f"{precision} needs no measurement for OpenVINO: it rounds as ONNX Runtime does",
            remedy=f"rdedge run {bundle.path} --backend openvino",
        )
    key = proof_key(bundle, precision)
    if if_needed and (found := _usable(bundle, key)) is not None:
        return found, False
    with only_builder(bundle.path / ENGINES_FOLDER, say) as had_to_wait:
        if had_to_wait and (found := _usable(bundle, key)) is not None:
            return found, False
        return write_proof(bundle, _prove(bundle, key, gate)), True


def _usable(bundle: Bundle, key: ProofKey) -> Proof | None:
    try:
        return read_proof(bundle, key)
    except BackendError:
        return None


def _prove(bundle: Bundle, key: ProofKey, gate: Gate) -> Proof:
    """Raises BackendError beyond the gate's budget."""
    precision, graph, frames_u8 = key.precision, bundle.contract.graph, bundle.calibration_frames()
    batch = graph.batch
    expected = _measure(lambda: open_backend(bundle), frames_u8, batch)
    got = _measure(lambda: OpenVinoBackend(bundle.graph_path(precision), graph), frames_u8, batch)
    if not (np.isfinite(got.maps).all() and np.isfinite(got.scores).all()):
        raise BackendError(f"{precision} with OpenVINO answers NaN or infinity", remedy=_OTHER)
    limit = bundle.precision_spec(precision).image_threshold
    image_threshold, pixel_threshold = fit_thresholds(got.maps, got.scores, limit.target_rate, refit_method(limit))
    fp32_threshold, _ = fit_thresholds(expected.maps, expected.scores, limit.target_rate, refit_method(limit))
    flips = (got.scores > image_threshold.value) != (expected.scores > fp32_threshold.value)
    proof = Proof(
        schema_version=1,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        key=key,
        frames=len(frames_u8),
        map_cosine=float(map_cosines(expected.maps, got.maps).min()),
        flipped=int(flips.sum()),
        median_ms=got.median_ms,
        onnxruntime_fp32_median_ms=expected.median_ms,
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        record_sha256=UNSEALED,
    )
    is_near = proof.map_cosine >= gate.min_map_cosine
    if not is_near or proof.flipped > max(1, int(gate.max_verdict_flips * proof.frames)):
        raise BackendError(
            f"{precision} with OpenVINO {key.version} on this {key.processor} is too far from FP32: map cosine "
            f"{proof.map_cosine:.4f} (at least {gate.min_map_cosine:g} is asked for), {proof.flipped} of "
            f"{proof.frames} verdicts flip",
            remedy=_OTHER if adds_int8_exactly(key.processor, platform.machine()) else _SATURATES,
        )
    return proof


def adds_int8_exactly(processor: str, architecture: str) -> bool:
    """Whether OpenVINO's INT8 kernels have what they need on a processor, by rdedge.board.machine.processor_name.

    x86 without VNNI and AMX adds pairs of INT8 products in 16 bits, which saturate (oneDNN, "Nuances of int8
    computations"): an edge-lite0 map's cosine to FP32's falls to 0.5, and the kernels are hardly faster than FP32's.
    """
    return architecture != "x86_64" or "vnni" in processor or "amx_int8" in processor


_INSTEAD = "nothing was written; use FP32, or --backend onnxruntime"
_OTHER = f"{_INSTEAD}, and report this processor and version"
_SATURATES = f"{_INSTEAD}: without VNNI or AMX, which this processor has not, OpenVINO's sums of INT8 products saturate"


def _measure(open_engine: Callable[[], Backend], frames_u8: NDArray[np.uint8], batch: int) -> _Measured:
    """Alone, so that no other engine's threads take its time: answers to all frames, then calls until enough."""
    with closing(open_engine()) as backend:
        answers = infer_all(backend, frames_u8, batch)
        calls = [batch_u8 for batch_u8, _ in batches(frames_u8, batch)]
        times_ms = []
        for index in range(-_WARM_UP_CALLS, max(_LEAST_CALLS, len(calls))):
            started_s = time.perf_counter()
            backend.infer(calls[index % len(calls)])
            if index >= 0:
                times_ms.append((time.perf_counter() - started_s) * 1e3)
    return _Measured(answers.anomaly_map[:, 0], answers.score, median_ms=float(np.median(times_ms)))
