"""Built engines of a bundle: where they lie, what they were built for, and whether this machine may run them.

An engine is a file ``engines/<name>.engine`` with a record ``engines/<name>.json`` beside it, both made on the device
by `rdedge engine`. TensorRT promises nothing for an engine on another version or another GPU
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html), so the record
says exactly what the engine was built for, and anything else is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from rdedge.atomic import write_bytes
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.errors import BackendError
from rdedge.good_parts import Threshold
from rdedge.sealed import SealedRecord, read_sealed, write_sealed
from rdedge.strict import Sha256, Strict

ENGINES_FOLDER = "engines"

Flavour = Literal["tensorrt", "tensorrt-rtx"]


class EngineKey(Strict, frozen=True):
    """What an engine was built from and for; it runs where all of it is the same, but for ``workspace_mb``."""

    flavour: Flavour
    version: str  # of TensorRT, all its numbers
    gpu: str
    compute_capability: str  # e.g. "8.7"
    precision: Precision
    onnx_sha256: Sha256
    workspace_mb: int | None  # limit given to the builder, None: TensorRT's own
    dla_core: int | None  # where it runs what DLA takes, None: all on the GPU

    @property
    def name(self) -> str:
        """Stem of the engine's files: one engine a graph, TensorRT, GPU and DLA core."""
        dla = "" if self.dla_core is None else f"-dla{self.dla_core}"
        gpu = hashlib.sha256(self.gpu.encode()).hexdigest()[:4]
        return (
            f"{self.precision}-{self.flavour}-{self.version}-sm{self.compute_capability.replace('.', '')}-{gpu}"
            f"-{self.onnx_sha256[:12]}{dla}"
        )

    @property
    def backend(self) -> str:
        """Name of the backend that runs it, as `rdedge run --backend` takes it."""
        return self.flavour if self.dla_core is None else f"{self.flavour}-dla{self.dla_core}"


class EngineCheck(Strict, frozen=True):
    """Distance of the engine from ONNX Runtime on the calibration frames; ``*_share`` are of the map's peak."""

    frames: int
    p999_map_share: float
    max_score_share: float
    tolerance_share: float
    device_ms_median: float


class EngineRecord(SealedRecord, frozen=True):
    """Everything known of one built engine."""

    schema_version: Literal[1]
    created_utc: str
    key: EngineKey
    engine_sha256: Sha256
    engine_bytes: int
    build_s: float
    is_strongly_typed: bool
    layer_precisions: dict[str, str]  # layer name -> "fp32", "fp16", "int8" or "other", as the built engine says
    dla_layers: tuple[str, ...]  # of these, the ones that run on DLA
    check: EngineCheck
    image_threshold: Threshold  # refitted on the engine's own answers
    pixel_threshold: Threshold


def engine_paths(bundle: Bundle, key: EngineKey) -> tuple[Path, Path]:
    """Engine file and record of a key; they need not exist."""
    folder = bundle.path / ENGINES_FOLDER
    return folder / f"{key.name}.engine", folder / f"{key.name}.json"


def rebuild_command(bundle: Bundle, key: EngineKey) -> str:
    """What to type to build this engine."""
    dla = "" if key.dla_core is None else f" --dla {key.dla_core}"
    return f"build it here with `rdedge engine {bundle.path} --precision {key.precision} --backend {key.flavour}{dla}`"


def write_engine(bundle: Bundle, engine: bytes, record: EngineRecord) -> EngineRecord:
    """Put an engine in place of any older one; a record on disk always means that its engine is whole.

    Raises OSError, e.g. on a full disk; then neither file is there.
    """
    engine_path, record_path = engine_paths(bundle, record.key)
    try:
        record_path.unlink(missing_ok=True)
        write_bytes(engine_path, engine)
        return write_sealed(record_path, record)
    except BaseException:
        record_path.unlink(missing_ok=True)
        engine_path.unlink(missing_ok=True)
        raise


def read_record(bundle: Bundle, key: EngineKey) -> EngineRecord:
    """The record of the engine that this machine may run; ``key.workspace_mb`` is not compared.

    Raises BackendError if there is none, it was altered, or it is for another machine.
    """
    _, path = engine_paths(bundle, key)
    remedy = rebuild_command(bundle, key)
    if not path.is_file():
        raise BackendError(_why_none(bundle, key), remedy=remedy)
    record = read_sealed(path, EngineRecord, remedy=remedy)
    difference = _difference(record.key, key)
    if difference is not None:
        raise BackendError(f"{path}: is for {difference}", remedy=remedy)
    return record


def read_engine(bundle: Bundle, record: EngineRecord) -> bytes:
    """The engine's bytes, whole and as built. Raises BackendError."""
    path, _ = engine_paths(bundle, record.key)
    remedy = rebuild_command(bundle, record.key)
    if not path.is_file():
        raise BackendError(f"{path}: is missing", remedy=remedy)
    try:
        size = path.stat().st_size
        if size != record.engine_bytes:
            raise BackendError(f"{path}: has {size} bytes, was built with {record.engine_bytes}", remedy=remedy)
        data = path.read_bytes()
    except OSError as exc:
        raise BackendError(f"{path}: cannot be read ({exc.strerror})", remedy=remedy) from exc
    if hashlib.sha256(data).hexdigest() != record.engine_sha256:
        raise BackendError(f"{path}: was altered after the build (its sha256 does not fit)", remedy=remedy)
    return data


def newest_engine(bundle: Bundle, precision: Precision, flavour: Flavour) -> EngineRecord | None:
    """The last engine of this precision that was built for the GPU alone, from the bundle's graph, on any machine.

    Raises BackendError if a record was damaged or altered.
    """
    found = []
    for path in sorted((bundle.path / ENGINES_FOLDER).glob(f"{precision}-{flavour}-[0-9]*.json")):
        record = read_sealed(path, EngineRecord, remedy=f"remove {path} and its engine, or build it again")
        is_of_graph = record.key.onnx_sha256 == bundle.contract.files[bundle.precision_spec(precision).file]
        if is_of_graph and record.key.dla_core is None:
            found.append(record)
    return max(found, key=lambda record: record.created_utc, default=None)


def _difference(built: EngineKey, wanted: EngineKey) -> str | None:
    """The first part in which a build does not fit, in words; None: it fits."""
    sides = [
        ("precision", built.precision, wanted.precision),
        ("library", built.flavour, wanted.flavour),
        ("TensorRT", built.version, wanted.version),
        ("GPU", f"{built.gpu} (SM {built.compute_capability})", f"{wanted.gpu} (SM {wanted.compute_capability})"),
        ("graph", built.onnx_sha256[:12], wanted.onnx_sha256[:12]),
        ("running on", _device(built), _device(wanted)),
    ]
    for what, had, want in sides:
        if had != want:
            return f"{what} {had}, wanted {want}"
    return None


def _device(key: EngineKey) -> str:
    return "the GPU alone" if key.dla_core is None else f"DLA core {key.dla_core}"


def _why_none(bundle: Bundle, key: EngineKey) -> str:
    """Names the engine that comes nearest: after an update of TensorRT the reason is not that none was built."""
    on_dla = "" if key.dla_core is None else f", {_device(key)}"
    problem = f"{bundle.path}: has no {key.precision} engine for {key.flavour} {key.version} on this {key.gpu}{on_dla}"
    for path in sorted((bundle.path / ENGINES_FOLDER).glob(f"{key.precision}-{key.flavour}-[0-9]*.json")):
        if not path.is_file():  # a pipe would make us wait
            continue
        try:
            built = msgspec.json.decode(path.read_bytes(), type=EngineRecord).key
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        return f"{problem}, only one for {_difference(built, key)}"
    return problem
