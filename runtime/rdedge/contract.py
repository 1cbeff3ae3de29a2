"""The contract: the one description of what a model expects and answers, written by export and obeyed by the line.

Strict by design: every key is required, unknown keys are refused, and the file carries a hash of its own bytes, so
that nothing is ever filled in by a default and no edit goes unnoticed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from rdedge.errors import ContractError
from rdedge.fidelity import Gate, Metrics, Parity
from rdedge.good_parts import Distribution, FrameStatistics, Threshold
from rdedge.strict import Count, Sha256, Strict

SCHEMA_VERSION: Literal[5] = 5
CONTRACT_FILE = "contract.json"
MIN_SIDE_PX = 32
MAX_SIDE_PX = 4096
MAX_CALIBRATION_FRAMES = 32
_UNSEALED = "0" * 64

Side = Annotated[int, Meta(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]
Precision = Literal["fp32", "fp16", "int8"]


class InputSpec(Strict, frozen=True):
    """How a camera picture becomes the graph's frame; obeyed by rdedge.preprocess and by nothing else."""

    size_hw: tuple[Side, Side]
    colour_order: Literal["rgb"]
    resize: Literal["area+linear"]
    roi_xywh: tuple[Count, Count, Side, Side] | None  # in source pixels, None: the whole picture


class TensorSpec(Strict, frozen=True):
    """One input or output of the graph."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[Annotated[int, Meta(ge=1)], ...]


class GraphSpec(Strict, frozen=True):
    """The graph's tensors, the same for every precision."""

    opset: Annotated[int, Meta(ge=17)]
    frame: TensorSpec  # uint8 (N, H, W, 3)
    anomaly_map: TensorSpec  # float32 (N, 1, H, W)
    score: TensorSpec  # float32 (N,)

    @property
    def batch(self) -> int:
        """Frames of one engine call: N of every tensor."""
        return self.frame.shape[0]

    def __post_init__(self) -> None:
        n, h, w, c = self.frame.shape if len(self.frame.shape) == 4 else (0, 0, 0, 0)
        if self.frame.dtype != "uint8" or c != 3:
            raise ValueError(f"frame must be uint8 (N, H, W, 3), got {self.frame.dtype} {self.frame.shape}")
        if self.anomaly_map.dtype != "float32" or self.anomaly_map.shape != (n, 1, h, w):
            raise ValueError(f"anomaly_map must be float32 {(n, 1, h, w)}, got {self.anomaly_map.shape}")
        if self.score.dtype != "float32" or self.score.shape != (n,):
            raise ValueError(f"score must be float32 {(n,)}, got {self.score.shape}")


class ModelSpec(Strict, frozen=True):
    """What was trained."""

    name: str
    teacher_weights: str  # where they came from, and their sha256
    ocbe: Literal["mff+oce", "oce", "none"]
    loss: Literal["flattened", "per-position", "squared"]
    head: Literal["plain", "position", "residual"]
    parameters: Count
    weights_sha256: Sha256


class DataSpec(Strict, frozen=True):
    """What it was trained on: counts and one hash over the names and bytes of the images."""

    train_images: Count
    train_sha256: Sha256
    held_out_images: Count
    held_out_sha256: Sha256
    split: str
    seed: int


class PrecisionSpec(Strict, frozen=True):
    """One graph file with the thresholds fitted on its own scores."""

    file: str
    image_threshold: Threshold
    pixel_threshold: Threshold
    good_scores: Distribution  # of held-out good parts
    parity: Parity
    metrics: Metrics | None
    gate: Gate | None  # None for fp32, which the others are measured against


class CalibrationSpec(Strict, frozen=True):
    """Held-out good parts as the graph sees them, from which a device refits thresholds and checks its engine."""

    frames: Annotated[int, Meta(ge=0, le=MAX_CALIBRATION_FRAMES)]

    def file_names(self) -> tuple[str, ...]:
        """Their files in the bundle, in order."""
        return tuple(f"calibration/{i:03d}.png" for i in range(self.frames))


class Contract(Strict, frozen=True):
    """The whole contract of a bundle."""

    schema_version: Literal[5]
    created_utc: str
    input: InputSpec
    graph: GraphSpec
    model: ModelSpec
    data: DataSpec
    precisions: dict[Precision, PrecisionSpec]
    good_frames: FrameStatistics
    calibration: CalibrationSpec
    files: dict[str, Sha256]  # every shipped file but the contract itself
    versions: dict[str, str]
    contract_sha256: Sha256

    def __post_init__(self) -> None:
        if self.graph.frame.shape[1:3] != self.input.size_hw:
            raise ValueError(f"frame {self.graph.frame.shape} does not fit size_hw {self.input.size_hw}")
        if not self.precisions:
            raise ValueError("at least one precision is needed")
        for name in self.files:
            check_file_name(name)
        for precision, spec in self.precisions.items():
            if spec.file not in self.files:
                raise ValueError(f"precision {precision} names {spec.file}, which is not under files")
            if (spec.gate is None) != (precision == "fp32"):
                raise ValueError(f"precision {precision} {'lacks its' if spec.gate is None else 'has a'} gate")
            if spec.gate is not None and (spec.gate.quantisation is None) != (precision != "int8"):
                raise ValueError(f"precision {precision}: quantisation is of int8 and of nothing else")
        listed = {name for name in self.files if name.startswith("calibration/")}
        if listed != set(self.calibration.file_names()):
            raise ValueError(f"{self.calibration.frames} calibration frames, but {len(listed)} of them under files")


def check_file_name(name: str) -> None:
    """A file of the bundle lies below it: no absolute path, no ``..``, no backslash, nothing unprintable."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and str(path) == name
    if not path.parts or path.is_absolute() or ".." in path.parts or not plain:
        raise ValueError(f"file name {name!r} leaves the bundle")


def _encode(contract: Contract) -> bytes:
    return msgspec.json.format(msgspec.json.encode(contract), indent=2) + b"\n"


def sealed(contract: Contract) -> Contract:
    """The contract with ``contract_sha256`` set to the hash of its file, in which that hash itself is all zeros."""
    blank = msgspec.structs.replace(contract, contract_sha256=_UNSEALED)
    return msgspec.structs.replace(contract, contract_sha256=hashlib.sha256(_encode(blank)).hexdigest())


def encode_contract(contract: Contract) -> bytes:
    """The bytes of contract.json for a sealed contract. Raises ContractError if the line would refuse them."""
    data = _encode(contract)
    decode_contract(data, Path(CONTRACT_FILE))
    return data


def decode_contract(data: bytes, path: Path) -> Contract:
    """Read contract.json strictly; ``path`` is only for messages. Raises ContractError."""
    remedy = "export the bundle again with `rdedge export`"
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("schema_version")
        if version is not None and bytes(version) != str(SCHEMA_VERSION).encode():
            raise ContractError(
                f"{path}: schema version {bytes(version).decode(errors='replace')[:20]}, "
                f"this rdedge reads {SCHEMA_VERSION}",
                remedy=f"{remedy} of this version",
            )
        contract = msgspec.json.decode(data, type=Contract)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ContractError(f"{path}: {exc}", remedy=remedy) from exc
    unsealed = data.replace(contract.contract_sha256.encode(), _UNSEALED.encode())
    if hashlib.sha256(unsealed).hexdigest() != contract.contract_sha256:
        raise ContractError(f"{path}: was changed after export (its own sha256 does not fit)", remedy=remedy)
    return contract
