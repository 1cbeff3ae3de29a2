"""The one ONNX graph of a bundle: static shapes, opset 17, camera frame in, anomaly map and score out."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import onnx
import torch
from onnx import version_converter

from rdedge.contract import GraphSpec, TensorSpec
from rdedge.errors import ExportError
from rdedge_train.model import Detector

OPSET = 17  # read by TensorRT 8.6 to 11, TensorRT-RTX and ONNX Runtime alike
_EXPORTER_OPSET = 18  # the lowest torch's exporter writes; lowered afterwards
_IR_VERSION = 8  # of opset 17's ONNX 1.12: older runtimes refuse newer ones


def graph_spec(size_hw: tuple[int, int], batch: int = 1) -> GraphSpec:
    """Names, types and shapes of the graph's tensors, for ``batch`` frames at a time."""
    height, width = size_hw
    return GraphSpec(
        opset=OPSET,
        frame=TensorSpec(name="frame", dtype="uint8", shape=(batch, height, width, 3)),
        anomaly_map=TensorSpec(name="anomaly_map", dtype="float32", shape=(batch, 1, height, width)),
        score=TensorSpec(name="score", dtype="float32", shape=(batch,)),
    )


def onnx_graph(detector: Detector, spec: GraphSpec) -> bytes:
    """Trace the detector in evaluation mode; batch norms are folded, nothing of this machine stays in the file.

    Raises ExportError if the result is not a valid graph of opset 17.
    """
    frame = torch.zeros(spec.frame.shape, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            copy.deepcopy(detector).cpu().eval(),
            (frame,),
            input_names=[spec.frame.name],
            output_names=[spec.anomaly_map.name, spec.score.name],
            opset_version=_EXPORTER_OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    try:
        model = version_converter.convert_version(program.model_proto, OPSET)
    except RuntimeError as exc:
        raise ExportError(f"the graph cannot be written as opset {OPSET} ({exc})", remedy="report this model") from exc
    model.ir_version = _IR_VERSION
    _strip(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the graph is not valid ONNX ({exc})", remedy="report this model") from exc
    return bytes(model.SerializeToString())


def _strip(model: onnx.ModelProto) -> None:
    """The exporter notes source paths and stack traces at every node; they are nobody's business on the line."""
    model.doc_string = ""
    del model.metadata_props[:]
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del model.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on every channel; what matters is checked on its result."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
