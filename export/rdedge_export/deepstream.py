"""An nvinfer configuration of NVIDIA DeepStream for a bundle's graph, and the graph in the form that nvinfer feeds.

nvinfer always feeds float32 planes (https://docs.nvidia.com/deepstream/text/DS_plugin_gst-nvinfer.md: "final float
RGB/BGR/GRAY planar data"; its conversion kernels write nothing else), never the uint8 picture a bundle's graph takes.
So the graph loses its first two nodes, cast and transpose, and takes planes of 0 to 255; the rest is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from rdedge.atomic import new_folder
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.bundle import Bundle
from rdedge.contract import GraphSpec, InputSpec, Precision, PrecisionSpec
from rdedge.errors import ExportError, UsageError

CONFIG_FILE, GRAPH_FILE = "config_infer_primary.txt", "model.onnx"
TOLERANCE = 1e-5  # of the map's peak: another order of the same operations
_SMALLEST_PEAK = 1e-6
_EXPORT_AGAIN = "export the bundle again with this version of rdedge"


def write_deepstream(bundle: Bundle, precision: Precision, out: Path) -> float:
    """Make the folder ``out``: configuration, graph, README; returns how far the graph is from the bundle's own.

    Raises UsageError if ``out`` exists, the bundle has no such graph or is for batches, ExportError, OSError.
    """
    contract, spec = bundle.contract, bundle.precision_spec(precision)
    if contract.graph.batch != 1:
        raise UsageError(
            f"{bundle.path}: was exported for batches of {contract.graph.batch}",
            remedy="export it again for single pictures",
        )
    planar = planar_graph(onnx.load(bundle.graph_path(precision)), contract.graph)
    distance = _distance(bundle, precision, planar)
    with new_folder(out) as folder:
        (folder / GRAPH_FILE).write_bytes(planar)
        (folder / CONFIG_FILE).write_text(_config(contract.graph, contract.input, spec, precision))
        (folder / "README.txt").write_text(_readme(contract.input, spec, precision))
    return distance


def planar_graph(model: ModelProto, graph: GraphSpec) -> bytes:
    """The same network for float32 (1, 3, H, W) RGB planes of 0 to 255, as ONNX bytes. Changes ``model``.

    Raises ExportError if it does not begin with the cast and the transpose of every bundle's graph.
    """
    name = graph.frame.name
    nodes = model.graph.node
    casts = [node for node in nodes if name in node.input]
    planes = [node for node in nodes if casts and casts[0].output[0] in node.input]
    begins_as_known = (
        [node.op_type for node in casts] == ["Cast"]
        and [node.op_type for node in planes] == ["Transpose"]
        and list(_attribute(planes[0], "perm")) == [0, 3, 1, 2]
    )
    if not begins_as_known:
        raise ExportError("the graph does not begin with a cast and a transpose of its frame", remedy=_EXPORT_AGAIN)
    to = _attribute(casts[0], "to")
    first = helper.make_node("Cast" if to != TensorProto.FLOAT else "Identity", [name], [planes[0].output[0]])
    if to != TensorProto.FLOAT:
        first.attribute.append(helper.make_attribute("to", to))
    kept = [node for node in nodes if node not in (casts[0], planes[0])]
    del nodes[:]
    nodes.extend([first, *kept])
    batch, height, width, channels = graph.frame.shape
    frame = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, height, width])
    del model.graph.input[:]
    model.graph.input.append(frame)
    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the graph cannot take planes ({exc})", remedy=_EXPORT_AGAIN) from exc
    return bytes(model.SerializeToString())


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), ())


def _distance(bundle: Bundle, precision: Precision, planar: bytes) -> float:
    """Largest difference of maps and scores on the calibration frames, as a share of the map's peak."""
    graph = bundle.contract.graph
    backend = OnnxRuntimeBackend(bundle.graph_path(precision), graph)
    session = onnxruntime.InferenceSession(planar, providers=["CPUExecutionProvider"])
    differences, peak = [0.0], _SMALLEST_PEAK
    for frame_u8 in bundle.calibration_frames()[:, np.newaxis]:
        expected = backend.infer(frame_u8)
        outputs = session.run([graph.anomaly_map.name, graph.score.name], {graph.frame.name: as_planes(frame_u8)})
        for got, wanted in zip(outputs, (expected.anomaly_map, expected.score), strict=True):
            differences.append(float(np.abs(got - wanted).max()))
        peak = max(peak, float(np.abs(expected.anomaly_map).max()))
    backend.close()
    distance = float(np.max(differences)) / peak  # NaN if one is
    if not distance <= TOLERANCE:
        raise ExportError(f"the graph for planes differs by {distance:.1e} of the map's peak", remedy=_EXPORT_AGAIN)
    return distance


def as_planes(frame_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (1, H, W, 3) RGB -> float32 (1, 3, H, W), what nvinfer makes of it with a scale of 1."""
    return np.ascontiguousarray(frame_u8.transpose(0, 3, 1, 2), dtype=np.float32)


def _config(graph: GraphSpec, spec: InputSpec, thresholds: PrecisionSpec, precision: Precision) -> str:
    """Types come from the graph (strongly-typed), so no mode is asked for: INT8 mode would want a calibration table
    and fall back to FP16 without one, FP16 mode would take FP32 parts of the graph for FP16.
    """
    height, width = spec.size_hw
    keys = {
        "gpu-id": "0",
        "gie-unique-id": "1",
        "process-mode": "1",
        "onnx-file": GRAPH_FILE,
        "batch-size": "1",
        "infer-dims": f"3;{height};{width}",
        "network-type": "100",
        "network-mode": "0",
        "strongly-typed": "1",
        "model-color-format": "0",
        "net-scale-factor": "1.0",
        "maintain-aspect-ratio": "0",
        "scaling-filter": "1",
        "output-blob-names": f"{graph.anomaly_map.name};{graph.score.name}",
        "output-tensor-meta": "1",
    }
    notes = [
        f"# {precision} graph of rdedge. nvinfer decides nothing: read both outputs from NvDsInferTensorMeta.",
        f"# A part is rejected if {graph.score.name} > {thresholds.image_threshold.value!r};",
        f"# a pixel is marked if {graph.anomaly_map.name} > {thresholds.pixel_threshold.value!r}.",
    ]
    return "\n".join([*notes, "[property]", *(f"{key}={value}" for key, value in keys.items())]) + "\n"


def _readme(spec: InputSpec, thresholds: PrecisionSpec, precision: Precision) -> str:
    height, width = spec.size_hw
    image, pixel = thresholds.image_threshold.value, thresholds.pixel_threshold.value
    roi = ""
    if spec.roi_xywh is not None:
        x, y, w, h = spec.roi_xywh
        roi = (
            f"\nThe model judges a region of the camera's picture, nvinfer the whole one: cut it first, with\n"
            f"nvvideoconvert src-crop={x}:{y}:{w}:{h}.\n"
        )
    return f"""nvinfer configuration for NVIDIA DeepStream, made by `rdedge export --deepstream`.

  ... ! nvstreammux batch-size=1 width={width} height={height} ! nvinfer config-file-path={CONFIG_FILE} ! ...

{GRAPH_FILE} is the bundle's {precision} graph, taking float planes in place of a uint8 picture. nvinfer builds
an engine of it at the first start, for this machine. `strongly-typed` makes it keep the graph's precisions; an nvinfer
that calls this key unknown cannot build fp16 and int8 graphs: export fp32 for it, or build the engine with
`trtexec --stronglyTyped --onnx={GRAPH_FILE} --saveEngine=model.engine` and add model-engine-file=model.engine.

A part is rejected if its score is above {image!r},
a pixel marked if the map is above {pixel!r}.
{roi}
These thresholds were fitted on pictures shrunk by rdedge.preprocess. DeepStream shrinks otherwise (scaling-filter),
which moves scores a little: fit the threshold again on good parts seen through this pipeline, or feed {width}x{height}.
"""
