"""Bundles of all three precisions, and a fake TensorRT for each version file in tests/trt_api."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from engine_graphs import SIZE_HW, tiny_graph
from fake_tensorrt import VERSIONS, make_module

from rdedge.contract import CONTRACT_FILE, Contract, encode_contract, sealed
from rdedge.fidelity import Gate, QuantisationSpec

# Run by test_standin.py in a process of its own: a pretend CUDA driver in this one would mislead torch.
collect_ignore = [] if "RDEDGE_STANDIN" in os.environ else ["standin"]
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


WriteEngineBundle = Callable[..., Path]


@pytest.fixture
def write_engine_bundle(tmp_path: Path) -> WriteEngineBundle:
    """A bundle of fp32, fp16 and int8 with six calibration frames."""

    def write(name: str = "bundle", batch: int = 1) -> Path:
        folder = tmp_path / name
        (folder / "calibration").mkdir(parents=True)
        files = {
            f"model.{precision}.onnx": tiny_graph(precision, batch=batch) for precision in ("fp32", "fp16", "int8")
        }
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
        contract = sealed(msgspec.structs.replace(contract, precisions=precisions))
        (folder / CONTRACT_FILE).write_bytes(encode_contract(contract))
        return folder

    return write


@pytest.fixture
def engine_bundle(write_engine_bundle: WriteEngineBundle) -> Path:
    return write_engine_bundle()


InstallTensorRt = Callable[[str], Any]


@pytest.fixture
def install_tensorrt(monkeypatch: pytest.MonkeyPatch) -> InstallTensorRt:
    """Makes a version the one that ``import tensorrt`` (or ``tensorrt_rtx``) finds."""

    def install(version: str) -> Any:
        module = make_module(version)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return install


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, install_tensorrt: InstallTensorRt) -> Any:
    """The fake TensorRT of each version in turn."""
    return install_tensorrt(request.param)
