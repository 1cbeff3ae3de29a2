"""OpenVINO on the CPU, for processors with INT8 instructions (AVX-512 VNNI, AMX). The only module that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import EXPORT_AGAIN, Prediction, check_frame, check_tensors
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError, MissingExtraError

_TYPES = {"uint8": "u8", "float32": "f32"}
_CONFIG = {
    "PERFORMANCE_HINT": "LATENCY",
    # By default the plugin runs FP32 and FP16 graphs in bfloat16 where the processor has it, which moves maps by 1e-2.
    # https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
    "INFERENCE_PRECISION_HINT": "f32",
}


class OpenVinoBackend:
    """Runs one ONNX graph on the CPU: what its Q/DQ pairs enclose in INT8, all else in FP32, whatever FP16 it holds."""

    name = "openvino"
    thresholds = None

    def __init__(self, graph_path: Path, graph: GraphSpec):
        """Loads a graph file whose tensors must be those of ``graph``. Raises BackendError, MissingExtraError."""
        try:
            import openvino
            from openvino.frontend import FrontEndManager
        except ImportError as exc:  # absent, or built for another numpy or libc
            raise MissingExtraError(
                f"OpenVINO cannot be loaded ({exc})", remedy="pip install 'rdedge[openvino]'"
            ) from exc
        try:
            reader = FrontEndManager().load_by_framework("onnx")  # Core.read_model asks every reader, aloud
            model = reader.convert(reader.load(str(graph_path)))
            _keep_behind_concatenations(model)
            compiled = openvino.Core().compile_model(model, "CPU", _CONFIG)
        except Exception as exc:  # openvino's exceptions share no base class
            raise BackendError(f"{graph_path}: OpenVINO refuses it ({_reason(exc)})", remedy=EXPORT_AGAIN) from exc
        ports = {
            port.any_name: (port.element_type.get_type_name(), tuple(port.shape))
            for port in (*compiled.inputs, *compiled.outputs)
        }
        check_tensors(graph, ports, _TYPES, graph_path)
        self._graph = graph
        self._request: openvino.InferRequest | None = compiled.create_infer_request()

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer."""
        request = self._request
        if request is None:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        graph = self._graph
        check_frame(frame_u8, graph.frame)
        request.get_tensor(graph.frame.name).data[:] = frame_u8  # the request's own, so the caller's may be read-only
        try:
            request.infer()
        except Exception as exc:  # openvino's exceptions share no base class
            raise BackendError(f"inference failed: {_reason(exc)}", remedy="run `rdedge info` on the bundle") from exc
        anomaly_map, score = (request.get_tensor(spec.name).data.copy() for spec in (graph.anomaly_map, graph.score))
        return Prediction(anomaly_map=anomaly_map, score=score)

    def close(self) -> None:
        """See Backend.close."""
        self._request = None


def _keep_behind_concatenations(model: Any) -> None:
    """Hold INT8 rounding where the graph has it: behind a concatenation, not in each of its branches.

    OpenVINO moves it there, and then gets branches of different scale wrong (2026.4: maps of WRN-50 at a cosine of
    0.969 to FP32's instead of 0.996). It does not move it over a maximum, here with what changes nothing.
    """
    from openvino import opset8

    lowest = np.finfo(np.float32).min
    for op in model.get_ops():
        if op.get_type_name() != "FakeQuantize" or op.input_value(0).get_node().get_type_name() != "Concat":
            continue
        source = op.input_value(0)
        same = opset8.maximum(source, opset8.constant(np.asarray(lowest, source.get_element_type().to_dtype())))
        op.input(0).replace_source_output(same.output(0))


def _reason(exc: Exception) -> str:
    """The last line of it: those before name lines of OpenVINO's own source."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines or [type(exc).__name__])[-1][:400]
