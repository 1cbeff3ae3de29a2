"""What is network and what is judging, whatever the head is made of."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from rdedge_export.fp16 import with_fp16
from rdedge_export.gate import DEFAULT_BUDGET, GateFrames, Gatekeeper
from rdedge_export.graph_view import GraphView, float_types
from rdedge_export.precisions import Calibration, Lowering
from rdedge_export.qdq import quantisable

HEAD = {
    *("difference", "deviation", "by_position", "column", "white", "squares", "sum", "root", "rough"),
    *("anomaly_map", "score"),
}
NO_LABELS = np.zeros(0, np.bool_)


def squares_u8(n: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def lowering(model: ModelProto) -> Lowering:
    frames_u8 = squares_u8(6, 0)
    frames = GateFrames(good_u8=frames_u8, labelled_u8=frames_u8[:0], is_defective=NO_LABELS)
    return Lowering(model, Gatekeeper(model, frames, 0.01, DEFAULT_BUDGET))


def test_the_network_ends_at_the_features(fp32: ModelProto) -> None:
    view = GraphView(fp32)
    assert view.judging() | view.network() == set(view.nodes) and not view.judging() & view.network()
    features = {name for name in view.network() if any(r.output[0] in view.judging() for r in view.readers[name])}
    assert len(features) == 6, "three levels of teacher and student"
    assert {view.nodes[name].op_type for name in view.judging()} == {
        *("Mul", "ReduceSum", "Clip", "Sqrt", "Div", "Sub", "MatMul", "Add", "ReduceMax"),
    }


def test_a_head_of_any_nodes_is_judging(with_position_head: ModelProto) -> None:
    view = GraphView(with_position_head)
    assert view.judging() == HEAD
    names = [layer.name for layer in view.layers()]
    assert names == ["teacher.stem", "teacher.layer", "restorer.squeeze", "restorer.student"]
    assert [layer.name for layer in quantisable(with_position_head)] == names[1:]


def test_a_heads_large_constants_take_half_the_bytes(with_position_head: ModelProto) -> None:
    lowered = lowering(with_position_head).fp16()
    stored = GraphView(lowered.model).initialisers
    assert {"head.mean_fp16", "head.whitening_fp16"} <= set(stored) and not {"head.mean", "head.whitening"} & set(
        stored
    )
    assert lowered.model.ByteSize() <= 0.52 * with_position_head.ByteSize()
    assert lowered.gate.map_cosine > 0.999


def test_a_constant_that_halves_only_at_a_cost_stays_whole(with_position_head: ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(with_position_head)
    mean = next(t for t in model.graph.initializer if t.name == "head.mean")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(2000.0), "head.mean"))
    taught = next(node for node in model.graph.node if node.output[0] == "difference")
    taught.output[0] = "below"
    shift = numpy_helper.from_array(np.float32(2000.0), "shift")
    model.graph.initializer.append(shift)
    at = list(model.graph.node).index(taught) + 1
    model.graph.node.insert(at, onnx.helper.make_node("Add", ["below", "shift"], ["difference"]))
    stored = GraphView(lowering(model).fp16().model).initialisers
    assert "head.mean" in stored and "head.whitening_fp16" in stored


def test_what_is_unfit_for_fp16_is_told(resnet: ModelProto) -> None:
    assert "clamp_min stays FP32: FP16 makes its constant 1e-16 zero" in lowering(resnet).fp16().notes


def test_int8_ends_before_the_head(with_position_head: ModelProto) -> None:
    calibration = Calibration(frames_u8=squares_u8(8, 1), sha256="a" * 64, source="squares")
    lowered = lowering(with_position_head).int8(calibration)
    view, types = GraphView(lowered.model), float_types(lowered.model)
    coarse = {node.input[0] for node in lowered.model.graph.node if node.op_type == "QuantizeLinear"}
    assert {name.removesuffix("_fp32") for name in coarse} == {"stem_relu", "taught", "squeezed_relu"}
    assert {name for name in view.initialisers if types[name] == TensorProto.INT8 and name.endswith("weight_int8")} == {
        "teacher.layer.weight_int8",
        "restorer.squeeze.weight_int8",
        "restorer.student.weight_int8",
    }
    assert view.initialisers["teacher.stem.weight_fp16"].data_type == TensorProto.FLOAT16
    assert lowered.gate.layers_kept_back == ()


def test_stored_in_half_the_bytes_means_read_through_a_cast(with_position_head: ModelProto) -> None:
    typed = with_fp16(with_position_head, set(), {"head.mean"})
    view = GraphView(typed)
    cast = view.nodes[view.nodes["deviation"].input[1]]
    assert (cast.op_type, list(cast.input)) == ("Cast", ["head.mean_fp16"])
    assert float_types(typed)["deviation"] == TensorProto.FLOAT
    half = numpy_helper.to_array(view.initialisers["head.mean_fp16"])
    assert (half == GraphView(with_position_head).weight("head.mean").astype(np.float16)).all()
