"""OpenVINO on the CPU, for processors with INT8 instructions (AVX-512 VNNI, AMX). The only module that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import EXPORT_AGAIN, Prediction, check_frame, check_tensors
from rdedge.board.machine import processor_name
from rdedge.bundle import Bundle
from rdedge.contract import GraphSpec, Precision
from rdedge.cpu_proof import ProofKey, read_proof
from rdedge.errors import BackendError, MissingExtraError
from rdedge.good_parts import Threshold

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

    def __init__(self, graph_path: Path, graph: GraphSpec, thresholds: tuple[Threshold, Threshold] | None = None):
        """Loads a graph file whose tensors must be those of ``graph``. Raises BackendError, MissingExtraError.

        ``thresholds``: see Backend.thresholds.
        """
        self.thresholds = thresholds
        openvino = _library()
        try:
            from openvino.frontend import FrontEndManager

            reader = FrontEndManager().load_by_framework("onnx")  # Core.read_model asks every reader, aloud
            model = reader.convert(reader.load(str(graph_path)))
            _unsigned_where_never_negative(model)
            compiled = openvino.Core().compile_model(model, "CPU", _CONFIG)
        except Exception as exc:  # openvino's exceptions share no base class
            raise BackendError(f"{graph_path}: OpenVINO refuses it ({_reason(exc)})", remedy=EXPORT_AGAIN) from exc
        ports = {
            port.any_name: (port.element_type.get_type_name(), tuple(port.shape))
            for port in (*compiled.inputs, *compiled.outputs)
        }
        check_tensors(graph, ports, _TYPES, graph_path)
        self._graph = graph
        self._tensor = openvino.Tensor
        self._request: Any = compiled.create_infer_request()
        self._bound: list[Any] = []  # the last call's tensors, to which the request still points

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer.

        The engine reads the frame and writes the answer where they lie: the call ends after both, the answer's arrays
        are new, and the next call points the request elsewhere before anything is read or written again.
        """
        request = self._request
        if request is None:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        graph = self._graph
        check_frame(frame_u8, graph.frame)
        if not frame_u8.flags.writeable:  # openvino shares nothing read-only
            frame_u8 = frame_u8.copy()
        anomaly_map = np.empty(graph.anomaly_map.shape, np.float32)
        score = np.empty(graph.score.shape, np.float32)
        arrays = {graph.frame.name: frame_u8, graph.anomaly_map.name: anomaly_map, graph.score.name: score}
        try:
            bound = {name: self._tensor(array, shared_memory=True) for name, array in arrays.items()}
            for name, tensor in bound.items():
                request.set_tensor(name, tensor)
            self._bound = list(bound.values())
            request.infer(share_outputs=True)  # or it copies the answer once more, into a result nobody reads
        except Exception as exc:  # openvino's exceptions share no base class
            raise BackendError(f"inference failed: {_reason(exc)}", remedy="run `rdedge info` on the bundle") from exc
        return Prediction(anomaly_map=anomaly_map, score=score)

    def close(self) -> None:
        """See Backend.close."""
        self._request = None
        self._bound = []


def _unsigned_where_never_negative(model: Any) -> None:
    """Round what is never negative, such as a ReLU's output, to 0 to 255 instead of -127 to 127, with the same limit.

    The graph is symmetric because TensorRT takes nothing else. Unsigned steps are half as large, and what VNNI
    multiplies: maps of WRN-50 come from a cosine of 0.995 to FP32's to 0.9975, and a fifth sooner. OpenVINO also moves
    rounding over a concatenation into its branches, where it gets signed ones of different scale wrong (2026.4: a
    cosine of 0.969); unsigned ones it gets right.
    """
    from openvino import opset8

    for op in model.get_ordered_ops():
        if op.get_type_name() != "FakeQuantize" or not _is_never_negative(op.input_value(0).get_node()):
            continue
        (coarse,) = op.output(0).get_target_inputs()  # to INT8, and from there back to FP32 by zero point and scale
        steps = [coarse.get_node()]
        while steps[-1].get_type_name() != "Multiply":
            (following,) = steps[-1].output(0).get_target_inputs()
            steps.append(following.get_node())
        zero, limit = opset8.constant(np.float32(0.0)), op.input_value(2)
        rounded = opset8.fake_quantize(op.input_value(0), zero, limit, zero, limit, 256)
        steps[-1].output(0).replace(rounded.output(0))


def _is_never_negative(node: Any) -> bool:
    """By what kind of node it is: ReLU, a maximum with a constant, and what keeps the sign of all it reads."""
    kind = node.get_type_name()
    sources = [value.get_node() for value in node.input_values()]
    if kind == "Relu":
        return True
    if kind == "Constant":
        return bool((node.get_data() >= 0).all())
    if kind == "Maximum":
        return any(_is_never_negative(source) for source in sources)
    if kind in ("Minimum", "Concat"):
        return all(_is_never_negative(source) for source in sources)
    if kind == "Interpolate" and node.get_attributes()["mode"] != "nearest":  # a cubic one overshoots
        return False
    return kind in ("Convert", "MaxPool", "Interpolate") and _is_never_negative(sources[0])


def open_proven(bundle: Bundle, precision: Precision) -> OpenVinoBackend:
    """One precision of a bundle; below FP32 only as it was measured on this machine, with its thresholds.

    Raises BackendError, MissingExtraError, UsageError.
    """
    graph_path, graph = bundle.graph_path(precision), bundle.contract.graph
    if precision == "fp32":  # rounds as ONNX Runtime does, up to the order of additions
        return OpenVinoBackend(graph_path, graph)
    proof = read_proof(bundle, proof_key(bundle, precision))
    return OpenVinoBackend(graph_path, graph, (proof.image_threshold, proof.pixel_threshold))


def proof_key(bundle: Bundle, precision: Precision) -> ProofKey:
    """What a measurement of this precision on this machine is for. Raises MissingExtraError, UsageError."""
    return ProofKey(
        version=_library().__version__,
        processor=processor_name(),
        precision=precision,
        onnx_sha256=bundle.contract.files[bundle.precision_spec(precision).file],
    )


def _library() -> Any:
    try:
        import openvino
    except ImportError as exc:  # absent, or built for another numpy or libc
        raise MissingExtraError(f"OpenVINO cannot be loaded ({exc})", remedy="pip install 'rdedge[openvino]'") from exc
    return openvino


def _reason(exc: Exception) -> str:
    """The last line of it: those before name lines of OpenVINO's own source."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines or [type(exc).__name__])[-1][:400]
