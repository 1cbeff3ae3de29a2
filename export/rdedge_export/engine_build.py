"""From a bundle to an engine that is proven on this device: build, look inside, compare, refit thresholds, write."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdedge.atomic import write_bytes
from rdedge.backends import Backend, Prediction, batches, infer_all
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.backends.trt import TensorRtBackend, engine_key
from rdedge.backends.trt_library import load_tensorrt
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.engines import (
    ENGINES_FOLDER,
    EngineCheck,
    EngineKey,
    EngineRecord,
    Flavour,
    read_engine,
    read_record,
    rebuild_command,
    write_engine,
)
from rdedge.errors import BackendError, UsageError
from rdedge.sealed import UNSEALED
from rdedge.threshold import fit_thresholds, refit_method
from rdedge_export.engine import Progress, build_plan
from rdedge_export.engine_layers import check_precision, dla_layers, layer_precisions

# Largest difference from ONNX Runtime on the same graph, as a share of the largest map value of good parts: another
# order of additions in FP32, rounding in FP16, values that fall on the other side of a quantisation step in INT8.
TOLERANCE_SHARE: dict[Precision, float] = {"fp32": 0.01, "fp16": 0.05, "int8": 0.25}
_SMALLEST_PEAK = 1e-6  # good parts without any difference between teacher and student
_RECORD_VERSION: Literal[1] = 1


def build_engine(
    bundle: Bundle,
    precision: Precision,
    flavour: Flavour,
    *,
    workspace_mb: int | None,
    if_needed: bool,
    progress: Progress,
    say: Callable[[str], None],
    dla_core: int | None = None,
) -> tuple[EngineRecord, bool]:
    """The engine's record, and whether it was built now. Where another process is building, waits and takes its engine.

    Raises BackendError, MissingExtraError, BundleError, UsageError, OSError; then nothing half-written is left.
    """
    if dla_core is not None and precision == "fp32":
        raise UsageError("DLA computes in FP16 or INT8, not in FP32", remedy="add --precision fp16, or leave out --dla")
    key = engine_key(bundle, precision, flavour, workspace_mb, dla_core)
    frames_u8 = bundle.calibration_frames()
    folder = bundle.path / ENGINES_FOLDER
    with only_builder(folder, say) as had_to_wait, closing(_reference(bundle, precision)) as reference:
        if if_needed or had_to_wait:
            found = _usable(bundle, key)
            if found is not None:
                return found, False
        return _build(bundle, key, reference, frames_u8, progress), True


def _reference(bundle: Bundle, precision: Precision) -> Backend:
    """Opened before the build: what is missing is said before minutes are spent."""
    return OnnxRuntimeBackend(bundle.graph_path(precision), bundle.contract.graph)


@contextmanager
def only_builder(folder: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """One build or measurement at a time in a bundle's ``folder`` of engines; yields whether another had to end first.

    A killed one's lock is free again. Raises OSError.
    """
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            had_to_wait = False
        except BlockingIOError:
            say("another process is building or measuring engines of this bundle: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
            had_to_wait = True
        for abandoned in folder.glob(".*.partial-*"):  # of killed builds: nobody else is writing now
            abandoned.unlink(missing_ok=True)
        yield had_to_wait


def _usable(bundle: Bundle, key: EngineKey) -> EngineRecord | None:
    try:
        record = read_record(bundle, key)
        read_engine(bundle, record)
    except BackendError:
        return None
    return record if record.key == key else None


def _build(
    bundle: Bundle, key: EngineKey, reference: Backend, frames_u8: NDArray[np.uint8], progress: Progress
) -> EngineRecord:
    cache_path = bundle.path / ENGINES_FOLDER / f"{key.flavour}-{key.version}-sm{key.compute_capability}.timing"
    plan = build_plan(
        load_tensorrt(key.flavour),
        bundle.graph_path(key.precision),
        key.precision,
        workspace_mb=key.workspace_mb,
        timing_cache=cache_path.read_bytes() if cache_path.is_file() else b"",
        progress=progress,
        dla_core=key.dla_core,
    )
    remedy = f"report this TensorRT version; {rebuild_command(bundle, key)} once more"
    graph = bundle.contract.graph
    with closing(TensorRtBackend(plan.engine, graph, key.flavour, remedy=remedy, dla_core=key.dla_core)) as engine:
        information = engine.layer_information()
        layers = layer_precisions(information)
        on_dla = () if key.dla_core is None else dla_layers(information, plan.dla_layers)
        check_precision(key.precision, layers)
        got = infer_all(engine, frames_u8, graph.batch)
        times_ms = [_device_ms(engine, batch_u8) for batch_u8, _ in batches(frames_u8, graph.batch)]
    check = _compare(key, got, infer_all(reference, frames_u8, graph.batch), times_ms)
    limit = bundle.precision_spec(key.precision).image_threshold
    image_threshold, pixel_threshold = fit_thresholds(
        got.anomaly_map[:, 0], got.score, limit.target_rate, refit_method(limit)
    )
    record = EngineRecord(
        schema_version=_RECORD_VERSION,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        key=key,
        engine_sha256=hashlib.sha256(plan.engine).hexdigest(),
        engine_bytes=len(plan.engine),
        build_s=plan.build_s,
        is_strongly_typed=plan.is_strongly_typed,
        layer_precisions=layers,
        dla_layers=on_dla,
        check=check,
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        record_sha256=UNSEALED,
    )
    record = write_engine(bundle, plan.engine, record)
    if plan.timing_cache:
        write_bytes(cache_path, plan.timing_cache)
    return record


def _device_ms(engine: TensorRtBackend, batch_u8: NDArray[np.uint8]) -> float:
    """Of a call of its own, once all frames went through: what an engine loads late is in no figure then."""
    engine.infer(batch_u8)
    return engine.device_ms


def _compare(key: EngineKey, got: Prediction, expected: Prediction, times_ms: list[float]) -> EngineCheck:
    """Raises BackendError beyond the tolerance, also on values that are no numbers."""
    peak = max(float(np.abs(expected.anomaly_map).max()), _SMALLEST_PEAK)
    check = EngineCheck(
        frames=len(got.score),
        p999_map_share=float(np.quantile(np.abs(got.anomaly_map - expected.anomaly_map), 0.999)) / peak,
        max_score_share=float(np.abs(got.score - expected.score).max()) / peak,
        tolerance_share=TOLERANCE_SHARE[key.precision],
        device_ms_median=float(np.median(times_ms)),
    )
    worst = float(np.max([check.p999_map_share, check.max_score_share]))  # NaN if one is
    if not worst <= check.tolerance_share:
        raise BackendError(
            f"the {key.precision} engine of {key.flavour} {key.version} differs from ONNX Runtime by {worst:.1%} of "
            f"the map's peak on {check.frames} good parts, {check.tolerance_share:.0%} are allowed",
            remedy="nothing was written; use another precision, or report this graph and this TensorRT version",
        )
    return check
