"""The Triton model repository: read back by Triton's own schema, and its graph answers as the bundle does."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from rdedge.bundle import open_bundle
from rdedge.contract import CONTRACT_FILE, Contract, TensorSpec, encode_contract, sealed
from rdedge.engines import EngineCheck, EngineKey, EngineRecord, engine_paths, write_engine
from rdedge.errors import BackendError, UsageError
from rdedge_export.triton import _quoted, write_triton

Copied = Callable[[Path], Path]


@pytest.fixture(scope="session")
def schema() -> Any:
    """model_config.proto as NVIDIA's client package ships it; loaded by its file, the package itself wants gRPC."""
    files = metadata.files("tritonclient") or []
    path = next(file for file in files if file.as_posix().endswith("tritonclient/grpc/model_config_pb2.py")).locate()
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(schema: Any, path: Path) -> Any:
    """Raises ParseError on an unknown key, a wrong type, or text that is none."""
    return text_format.Parse(path.read_text(), schema.ModelConfig())


def shape_of(schema: Any, tensor: Any) -> TensorSpec:
    names = {schema.TYPE_UINT8: "uint8", schema.TYPE_FP32: "float32"}
    return TensorSpec(name=tensor.name, dtype=names[tensor.data_type], shape=tuple(tensor.dims))


def change(bundle: Path, **changes: Any) -> Contract:
    contract = sealed(msgspec.structs.replace(open_bundle(bundle).contract, **changes))
    (bundle / CONTRACT_FILE).write_bytes(encode_contract(contract))
    return contract


def test_the_repository_is_what_triton_expects(tiny_bundle: Path, tmp_path: Path, schema: Any) -> None:
    bundle = open_bundle(tiny_bundle)
    assert write_triton(bundle, "fp32", tmp_path / "repository") is None
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "repository/README.txt",
        "repository/rdedge/1/model.onnx",
        "repository/rdedge/config.pbtxt",
    ]
    config = read_config(schema, tmp_path / "repository/rdedge/config.pbtxt")
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("rdedge", "onnxruntime", "", 0)
    assert config.default_model_filename == "model.onnx"
    graph, precision = bundle.contract.graph, bundle.contract.precisions["fp32"]
    assert [shape_of(schema, tensor) for tensor in config.input] == [graph.frame]
    assert [shape_of(schema, tensor) for tensor in config.output] == [graph.anomaly_map, graph.score]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert float(parameters.pop("image_threshold")) == precision.image_threshold.value
    assert float(parameters.pop("pixel_threshold")) == precision.pixel_threshold.value
    assert parameters == {"precision": "fp32", "colour_order": "rgb", "resize": "area+linear", "roi_xywh": ""}


def test_a_client_decides_as_the_bundle_does(tiny_bundle: Path, tmp_path: Path, schema: Any) -> None:
    """Triton's ONNX backend is ONNX Runtime: names, types and shapes of the configuration are enough to be served."""
    bundle = open_bundle(tiny_bundle)
    write_triton(bundle, "fp32", tmp_path / "r")
    config = read_config(schema, tmp_path / "r/rdedge/config.pbtxt")
    path = tmp_path / "r/rdedge/1" / config.default_model_filename
    assert path.read_bytes() == bundle.graph_path("fp32").read_bytes()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    frame = bundle.calibration_frames()[:1].reshape(tuple(config.input[0].dims))
    answers = session.run([tensor.name for tensor in config.output], {config.input[0].name: frame})
    assert [answer.shape for answer in answers] == [tuple(tensor.dims) for tensor in config.output]
    assert all(np.isfinite(answer).all() for answer in answers)


def test_a_region_is_told(tiny_bundle: Path, copied: Copied, tmp_path: Path, schema: Any) -> None:
    folder = copied(tiny_bundle)
    contract = open_bundle(folder).contract
    change(folder, input=msgspec.structs.replace(contract.input, roi_xywh=(4, 5, 60, 70)))
    write_triton(open_bundle(folder), "fp32", tmp_path / "r")
    config = read_config(schema, tmp_path / "r/rdedge/config.pbtxt")
    assert config.parameters["roi_xywh"].string_value == "4,5,60,70"
    assert "cut to the region roi_xywh" in (tmp_path / "r/README.txt").read_text()


def engine_record(folder: Path, created: str, **changes: Any) -> EngineRecord:
    bundle = open_bundle(folder)
    spec = bundle.contract.precisions["fp32"]
    key = EngineKey(
        flavour="tensorrt",
        version="10.3.0",
        gpu='Orin "nvgpu"\n',
        compute_capability="8.7",
        precision="fp32",
        onnx_sha256=bundle.contract.files[spec.file],
        workspace_mb=None,
        dla_core=None,
    )
    plan = f"plan of {created}".encode()
    limit = msgspec.structs.replace(spec.image_threshold, value=float(len(created)))
    return EngineRecord(
        schema_version=1,
        created_utc=created,
        key=msgspec.structs.replace(key, **changes),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        build_s=1.0,
        is_strongly_typed=True,
        layer_precisions={"a": "fp32"},
        dla_layers=(),
        check=EngineCheck(
            frames=4, p999_map_share=0.0, max_score_share=0.0, tolerance_share=0.01, device_ms_median=1.0
        ),
        image_threshold=limit,
        pixel_threshold=spec.pixel_threshold,
        record_sha256="0" * 64,
    )


def put_engine(folder: Path, created: str, **changes: Any) -> EngineRecord:
    (folder / "engines").mkdir(exist_ok=True)
    return write_engine(open_bundle(folder), f"plan of {created}".encode(), engine_record(folder, created, **changes))


def test_the_newest_engine_is_a_second_configuration(
    tiny_bundle: Path, copied: Copied, tmp_path: Path, schema: Any
) -> None:
    folder = copied(tiny_bundle)
    put_engine(folder, "2026-01-01", version="8.6.1")
    newest = put_engine(folder, "2026-01-02 x")
    for other in ({"dla_core": 0}, {"flavour": "tensorrt-rtx"}, {"onnx_sha256": "a" * 64}, {"precision": "fp16"}):
        put_engine(folder, "2027-01-01", **other)
    assert write_triton(open_bundle(folder), "fp32", tmp_path / "r") == newest
    config = read_config(schema, tmp_path / "r/rdedge/configs/tensorrt.pbtxt")
    assert (config.name, config.platform, config.backend) == ("rdedge", "tensorrt_plan", "")
    assert (tmp_path / "r/rdedge/1" / config.default_model_filename).read_bytes() == b"plan of 2026-01-02 x"
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert (told["tensorrt"], told["gpu"], told["image_threshold"]) == ("10.3.0", 'Orin "nvgpu"\n', "12.0")
    assert "--model-config-name=tensorrt" in (tmp_path / "r/README.txt").read_text()
    first = read_config(schema, tmp_path / "r/rdedge/config.pbtxt")
    assert first.backend == "onnxruntime" and first.parameters["image_threshold"].string_value != "12.0"


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tiny_bundle: Path, copied: Copied, tmp_path: Path) -> None:
    folder = copied(tiny_bundle)
    _, path = engine_paths(open_bundle(folder), put_engine(folder, "2026-01-01").key)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BackendError, match="json: is not a file; remove"):
        write_triton(open_bundle(folder), "fp32", tmp_path / "r")


@pytest.mark.parametrize("damage", ["engine", "record"])
def test_a_damaged_engine_is_not_served(tiny_bundle: Path, copied: Copied, tmp_path: Path, damage: str) -> None:
    folder = copied(tiny_bundle)
    record = put_engine(folder, "2026-01-01")
    path = engine_paths(open_bundle(folder), record.key)[damage == "record"]
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(BackendError, match=r"altered after the build|is not what `rdedge engine` wrote"):
        write_triton(open_bundle(folder), "fp32", tmp_path / "r")
    assert not list(tmp_path.glob("r*")) and not list(tmp_path.glob(".r*"))


def test_what_cannot_be_written_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(UsageError, match=r"has no int8 graph \(it has: fp32\)"):
        write_triton(bundle, "int8", tmp_path / "r")
    (tmp_path / "r").mkdir()
    with pytest.raises(UsageError, match="r already exists; name another folder or remove it first"):
        write_triton(bundle, "fp32", tmp_path / "r")


@pytest.mark.parametrize("text", ["", 'a "b" \\ c', "ä€\n\t\0", "'"])
def test_every_text_survives_the_text_format(schema: Any, text: str) -> None:
    config = text_format.Parse(f"name: {_quoted(text)}", schema.ModelConfig())
    assert config.name == text
