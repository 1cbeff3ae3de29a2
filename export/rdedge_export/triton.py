"""A Triton Inference Server model repository around a bundle's graph, for those who outgrow one machine.

Layout and keys: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
and model_configuration.html; the schema is model_config.proto, by which the tests read what is written here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rdedge.atomic import new_folder
from rdedge.bundle import Bundle
from rdedge.contract import GraphSpec, InputSpec, Precision, TensorSpec
from rdedge.engines import EngineRecord, newest_engine, read_engine
from rdedge.good_parts import Threshold

MODEL_NAME = "rdedge"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


def write_triton(bundle: Bundle, precision: Precision, out: Path) -> EngineRecord | None:
    """Make the folder ``out``: one model of one version that answers as the bundle does.

    Where the bundle holds an engine of this precision for TensorRT, it is added as a second configuration; its record
    is returned. Raises UsageError if ``out`` exists or the bundle has no such graph, BackendError, OSError.
    """
    contract, spec = bundle.contract, bundle.precision_spec(precision)
    engine = newest_engine(bundle, precision, "tensorrt")
    with new_folder(out) as folder:
        version = folder / MODEL_NAME / "1"
        version.mkdir(parents=True)
        shutil.copyfile(bundle.graph_path(precision), version / "model.onnx")
        parameters = _parameters(contract.input, precision, spec.image_threshold, spec.pixel_threshold)
        text = _config('backend: "onnxruntime"', "model.onnx", contract.graph, parameters)
        (folder / MODEL_NAME / "config.pbtxt").write_text(text)
        if engine is not None:
            (version / "model.plan").write_bytes(read_engine(bundle, engine))
            parameters = _parameters(contract.input, precision, engine.image_threshold, engine.pixel_threshold)
            parameters |= {"tensorrt": engine.key.version, "gpu": engine.key.gpu}
            text = _config('platform: "tensorrt_plan"', "model.plan", contract.graph, parameters)
            (folder / MODEL_NAME / "configs").mkdir()
            (folder / MODEL_NAME / "configs" / "tensorrt.pbtxt").write_text(text)
        (folder / "README.txt").write_text(_readme(contract.graph, contract.input, engine))
    return engine


def _config(platform: str, file: str, graph: GraphSpec, parameters: dict[str, str]) -> str:
    """config.pbtxt. The graph's batch is fixed, so that Triton's batching is off and shapes are given whole."""
    lines = [f'name: "{MODEL_NAME}"', platform, f'default_model_filename: "{file}"', "max_batch_size: 0"]
    lines += [f"input [ {_tensor(graph.frame)} ]"]
    lines += [f"output [ {_tensor(graph.anomaly_map)}, {_tensor(graph.score)} ]"]
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}')
    return "\n".join(lines) + "\n"


def _tensor(spec: TensorSpec) -> str:
    dims = ", ".join(map(str, spec.shape))
    return f"{{ name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} dims: [ {dims} ] }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode())
    return f'"{escaped}"'


def _parameters(
    spec: InputSpec, precision: Precision, image_threshold: Threshold, pixel_threshold: Threshold
) -> dict[str, str]:
    """What a client needs to make frames and to decide; Triton hands it out with the configuration."""
    return {
        "precision": precision,
        "image_threshold": repr(image_threshold.value),
        "pixel_threshold": repr(pixel_threshold.value),
        "colour_order": spec.colour_order,
        "resize": spec.resize,
        "roi_xywh": "" if spec.roi_xywh is None else ",".join(map(str, spec.roi_xywh)),
    }


def _readme(graph: GraphSpec, spec: InputSpec, engine: EngineRecord | None) -> str:
    height, width = spec.size_hw
    roi = "" if spec.roi_xywh is None else "cut to the region roi_xywh (x, y, width, height in its pixels),\n"
    tensors = [
        f"{item.name}: {item.dtype} {list(item.shape)}" for item in (graph.frame, graph.anomaly_map, graph.score)
    ]
    usage = f"""Triton model repository, made by `rdedge export --triton`.

  tritonserver --model-repository=THIS_FOLDER

Input {tensors[0]}, the camera's picture in RGB order,
{roi}resized to {width}x{height} as rdedge.preprocess does it, which a Python client can import (no torch in it).
Outputs {tensors[1]} and {tensors[2]}.
A part is rejected if its score is above image_threshold, a pixel marked if its map value is above pixel_threshold.
Both are parameters of the model: GET /v2/models/{MODEL_NAME}/config.
"""
    graph_only = """
This runs the ONNX graph. For a TensorRT engine, build one with the server's TensorRT and GPU (`rdedge engine`), then
export again: it is added as 1/model.plan with a configuration for platform tensorrt_plan.
"""
    if engine is None:
        return usage + graph_only
    with_engine = f"""
Without more, the ONNX graph runs. 1/model.plan is a TensorRT {engine.key.version} engine for {engine.key.gpu}; a
server with just these runs it, with thresholds of its own, if started with --model-config-name=tensorrt.
"""
    return usage + with_engine
