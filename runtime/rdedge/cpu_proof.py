"""What OpenVINO was seen to do with a bundle's graph on this machine: its distance from FP32, its time, its thresholds.

The export's gate judges a precision by ONNX Runtime, which computes Q/DQ pairs as they are written. OpenVINO fuses and
rounds in ways of its own, which differ between processors and versions. So what it runs below FP32 is measured where it
runs, by `rdedge engine --backend openvino`, as a built engine of TensorRT is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.engines import ENGINES_FOLDER
from rdedge.errors import BackendError
from rdedge.good_parts import Threshold
from rdedge.sealed import SealedRecord, read_sealed, write_sealed
from rdedge.strict import Sha256, Strict


class ProofKey(Strict, frozen=True):
    """What was measured; a proof holds where all of it is the same."""

    version: str  # of OpenVINO
    processor: str  # and its instructions
    precision: Precision
    onnx_sha256: Sha256

    @property
    def name(self) -> str:
        """Stem of the proof's file."""
        where = hashlib.sha256(f"{self.version} {self.processor}".encode()).hexdigest()[:8]
        return f"{self.precision}-openvino-{where}-{self.onnx_sha256[:12]}"


class Proof(SealedRecord, frozen=True):
    """Distance from FP32 in ONNX Runtime on ``frames`` held-out good parts, and both engines' times a frame."""

    schema_version: Literal[1]
    created_utc: str
    key: ProofKey
    frames: int
    map_cosine: float  # of maps less their means; lowest of all frames
    flipped: int  # verdicts, each engine's by its own threshold
    median_ms: float
    onnxruntime_fp32_median_ms: float
    image_threshold: Threshold  # refitted on the engine's own answers
    pixel_threshold: Threshold


def proof_path(bundle: Bundle, key: ProofKey) -> Path:
    """Where a proof lies; it need not exist."""
    return bundle.path / ENGINES_FOLDER / f"{key.name}.json"


def prove_command(bundle: Bundle, precision: Precision) -> str:
    """What to type to measure it."""
    return f"measure it here with `rdedge engine {bundle.path} --precision {precision} --backend openvino`"


def write_proof(bundle: Bundle, proof: Proof) -> Proof:
    """Sealed, in place of any older one. Raises OSError, e.g. on a full disk."""
    path = proof_path(bundle, proof.key)
    path.parent.mkdir(exist_ok=True)
    return write_sealed(path, proof)


def read_proof(bundle: Bundle, key: ProofKey) -> Proof:
    """The proof for this machine. Raises BackendError if there is none, or it was altered."""
    path, remedy = proof_path(bundle, key), prove_command(bundle, key.precision)
    if not path.is_file():  # nor a pipe, which would make us wait
        raise BackendError(
            f"{bundle.path}: {key.precision} was not measured with OpenVINO {key.version} on this {key.processor}",
            remedy=remedy,
        )
    proof = read_sealed(path, Proof, remedy=remedy)
    if proof.key != key:
        raise BackendError(f"{path}: is of another machine or graph", remedy=remedy)
    return proof
