"""Bundles of the tiny graph in all three precisions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
from engine_graphs import SIZE_HW, tiny_graph

from rdedge.contract import CONTRACT_FILE, Contract, encode_contract, sealed
from rdedge.fidelity import Gate, QuantisationSpec

RUNTIME_CONFTEST = Path(__file__).parents[1] / "runtime" / "conftest.py"
GATE = Gate(
    good_frames=4,
    labelled_frames=0,
    map_cosine=0.999,
    p999_abs_map=0.01,
    score_rank_correlation=0.99,
    verdict_flips=0.0,
    auroc_change=None,
    max_auroc_drop=0.005,
    max_verdict_flips=0.01,
    min_map_cosine=0.99,
    layers_kept_back=(),
    quantisation=None,
)
QUANTISATION = QuantisationSpec(
    method="minmax", images=4, images_sha256="0" * 64, source="held-out good parts", fine_tuning=None
)


def _contract_for(files: dict[str, bytes], batch: int) -> Contract:
    """The contract that the runtime's tests use."""
    spec = importlib.util.spec_from_file_location("runtime_conftest", RUNTIME_CONFTEST)
    assert spec is not None and spec.loader is not None
    module = sys.modules.get("runtime_conftest") or importlib.util.module_from_spec(spec)
    if "runtime_conftest" not in sys.modules:
        sys.modules["runtime_conftest"] = module
        spec.loader.exec_module(module)
    contract: Contract = module.contract_for(files, SIZE_HW, None, batch)
    return contract


def write_bundle(folder: Path, *, batch: int = 1, versions: dict[str, str] | None = None) -> Path:
    """fp32, fp16 and int8 with six calibration frames; ``versions`` in its contract make it unlike others."""
    (folder / "calibration").mkdir(parents=True)
    files = {f"model.{precision}.onnx": tiny_graph(precision, batch=batch) for precision in ("fp32", "fp16", "int8")}
    noise = np.random.default_rng(0)
    for i in range(6):
        frame = noise.integers(180, 256, (*SIZE_HW, 3), dtype=np.uint8)
        files[f"calibration/{i:03d}.png"] = cv2.imencode(".png", frame)[1].tobytes()
    for file_name, data in files.items():
        (folder / file_name).write_bytes(data)
    contract = _contract_for(files, batch)
    fp32 = msgspec.structs.replace(contract.precisions["fp32"], file="model.fp32.onnx")
    int8_gate = msgspec.structs.replace(GATE, quantisation=QUANTISATION)
    precisions = {
        "fp32": fp32,
        "fp16": msgspec.structs.replace(fp32, file="model.fp16.onnx", gate=GATE),
        "int8": msgspec.structs.replace(fp32, file="model.int8.onnx", gate=int8_gate),
    }
    changed = msgspec.structs.replace(contract, precisions=precisions, versions=contract.versions | (versions or {}))
    (folder / CONTRACT_FILE).write_bytes(encode_contract(sealed(changed)))
    return folder
