"""The INT8 graph: symmetric, weights by channel in INT8, Q/DQ where TensorRT fuses, the rest in FP16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rdedge.errors import ExportError
from rdedge_export.fp16 import as_stored, with_fp16
from rdedge_export.gate import run
from rdedge_export.graph_view import GraphView, float_types
from rdedge_export.map_cosine import map_cosines
from rdedge_export.observers import observe
from rdedge_export.qdq import Quantised, quantisable, quantised, tensors_to_observe

SIZE_HW = (64, 64)
NEAR_TIE = 3e-5  # of half a step: weight / scale and stored * scale are rounded to float32, up to 127 steps from 0


@pytest.fixture(scope="module")
def frames_u8() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def limits(fp32: ModelProto, frames_u8: NDArray[np.uint8]) -> dict[str, float]:
    tensors = tensors_to_observe(fp32, quantisable(fp32))
    return observe(fp32, tensors, frames_u8).limits("minmax")


@pytest.fixture(scope="module")
def int8(fp32: ModelProto, limits: dict[str, float]) -> Quantised:
    return quantised(fp32, quantisable(fp32), limits)


@pytest.fixture(scope="module")
def int8_and_fp16(fp32: ModelProto, int8: Quantised) -> ModelProto:
    view = GraphView(fp32)
    return with_fp16(int8.model, set(view.nodes) - view.judging() - int8.int8_nodes)


def of_kind(model: ModelProto, *kinds: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def test_stem_depthwise_and_transposed_convolutions_are_left_alone(fp32: ModelProto) -> None:
    names = [layer.name for layer in GraphView(fp32).layers()]
    chosen = {layer.name for layer in quantisable(fp32)}
    depthwise = {name for name in names if name.endswith("_depthwise_conv")}
    assert len(depthwise) == (19 if "teacher.encoder._conv_stem" in names else 0)
    assert {layer.name for layer in GraphView(fp32).layers() if layer.is_depthwise} == depthwise
    left = [name for name in names if name not in chosen and name not in depthwise]
    assert not chosen & depthwise
    if "teacher.encoder._conv_stem" in names:
        assert left == ["teacher.encoder._conv_stem"]
    else:
        stages = [f"restorer.student.layer{stage}.0" for stage in (1, 2, 3)]
        transposed = [f"{stage}.{part}" for stage in stages for part in ("conv1", "upsample.0")]
        assert sorted(left) == sorted(["teacher.encoder.conv1", *transposed])


def test_transposed_ones_only_if_asked_for(fp32: ModelProto) -> None:
    without, with_them = quantisable(fp32), quantisable(fp32, with_transposed=True)
    assert [layer for layer in with_them if not layer.is_transposed] == without
    assert {x.name for x in with_them} - {x.name for x in without} == {
        layer.name for layer in GraphView(fp32).layers() if layer.is_transposed
    }


def test_a_transposed_layer_has_its_scales_by_output_channel(resnet: ModelProto) -> None:
    """Weights are (C_in, C_out, kh, kw) there: scales by the first axis would build, and be wrong."""
    layer = next(x for x in GraphView(resnet).layers() if x.name == "restorer.student.layer2.0.conv1")
    view = GraphView(quantised(resnet, [layer], {layer.input: 1.0}).model)
    node = view.nodes[view.nodes[layer.output].input[1]]
    exact = GraphView(resnet).weight(layer.weight)
    stored, scale = (numpy_helper.to_array(view.initialisers[name]) for name in node.input[:2])
    assert exact.shape == (256, 128, 2, 2) and scale.shape == (128,)
    assert helper.get_node_attr_value(node, "axis") == 1
    assert (np.abs(stored).max(axis=(0, 2, 3)) == 127).all()
    assert (np.abs(stored * scale[:, None, None] - exact) <= 0.5 * scale[:, None, None] * (1 + NEAR_TIE)).all()


def test_a_transposed_layer_is_the_product_of_rounded_values(frames_u8: NDArray[np.uint8]) -> None:
    weight = np.random.default_rng(1).normal(size=(3, 4, 1, 1)).astype(np.float32)
    weight[:, 2] *= 100.0  # an output channel that would drown the others if they shared its scale
    model = one_convolution(weight, "ConvTranspose")
    answers = run(quantised(model, GraphView(model).layers(), {"nchw": 127.0}).model, frames_u8[:1] // 2)
    scale = np.abs(weight).max(axis=(0, 2, 3)) / np.float32(127)
    stored = np.rint(weight[:, :, 0, 0] / scale) * scale
    expected = np.einsum("nhwi,io->nohw", (frames_u8[:1] // 2).astype(np.float32), stored).max(axis=1, keepdims=True)
    assert np.allclose(answers.maps[:, None], expected, rtol=1e-5)


def test_all_scales_are_positive_and_all_zero_points_zero(int8: Quantised) -> None:
    view = GraphView(int8.model)
    pairs = of_kind(int8.model, "QuantizeLinear", "DequantizeLinear")
    assert pairs
    for node in pairs:
        scale, zero = (numpy_helper.to_array(view.initialisers[name]) for name in node.input[1:])
        assert scale.dtype == np.float32 and (scale > 0).all()
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape


def test_activations_have_one_scale_and_weights_one_a_channel(fp32: ModelProto, int8: Quantised) -> None:
    view, before = GraphView(int8.model), GraphView(fp32)
    for layer in quantisable(fp32):
        activation, weight = (view.nodes[name] for name in view.nodes[layer.output].input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert view.nodes[activation.input[0]].op_type == "QuantizeLinear"
        assert view.initialisers[activation.input[1]].dims == []
        assert helper.get_node_attr_value(weight, "axis") == 0
        stored = numpy_helper.to_array(view.initialisers[weight.input[0]])
        scale = numpy_helper.to_array(view.initialisers[weight.input[1]])
        exact = before.weight(layer.weight)
        assert stored.dtype == np.int8 and stored.min() >= -127 and scale.shape == (len(exact),)
        error = np.abs(stored * scale[:, None, None, None] - exact).max(axis=(1, 2, 3))
        assert (error <= 0.5 * scale * (1 + NEAR_TIE)).all()
        is_dead = (exact == 0).all(axis=(1, 2, 3))
        assert (np.abs(stored).max(axis=(1, 2, 3))[~is_dead] == 127).all()


def test_a_tensor_has_one_pair_whoever_reads_it(fp32: ModelProto, int8: Quantised) -> None:
    quantise = of_kind(int8.model, "QuantizeLinear")
    assert len({node.input[0] for node in quantise}) == len(quantise)
    assert {node.input[0] for node in quantise} == set(tensors_to_observe(fp32, quantisable(fp32)))


def test_a_residual_addition_reads_its_skip_branch_in_int8(fp32: ModelProto, int8: Quantised) -> None:
    view = GraphView(int8.model)
    layers = {layer.output for layer in quantisable(fp32)}
    residual = [n for n in of_kind(fp32, "Add") if any(name in layers for name in n.input)]
    assert len(residual) > 5
    for before in residual:
        after = view.nodes[before.output[0]]
        kinds = [view.nodes[name].op_type for name in after.input]
        assert sorted(kinds) == ["Conv", "DequantizeLinear"]


def test_fewer_layers_need_no_other_ranges(fp32: ModelProto, limits: dict[str, float]) -> None:
    layers = quantisable(fp32)
    for layer in layers:
        assert set(tensors_to_observe(fp32, [layer])) <= set(limits)
        assert set(tensors_to_observe(fp32, [other for other in layers if other is not layer])) <= set(limits)


def test_what_is_not_int8_is_fp16(fp32: ModelProto, int8_and_fp16: ModelProto) -> None:
    types = float_types(int8_and_fp16)
    chosen = {layer.output for layer in quantisable(fp32)}
    for layer in GraphView(fp32).layers():
        assert types[layer.output] == (TensorProto.FLOAT if layer.output in chosen else TensorProto.FLOAT16)
    assert types["score"] == types["anomaly_map"] == TensorProto.FLOAT


def test_nothing_but_an_activation_stands_between_two_int8_convolutions(
    fp32: ModelProto, int8_and_fp16: ModelProto
) -> None:
    """Else TensorRT could not fuse them: a Cast would be a kernel of its own."""
    view = GraphView(int8_and_fp16)
    judging, types = view.judging(), float_types(int8_and_fp16)
    for layer in quantisable(fp32):
        for reader in view.readers[layer.output]:
            if reader.output[0] in judging:  # the features' judges, which take them as they come
                assert types[layer.output] == TensorProto.FLOAT
                continue
            assert reader.op_type in ("Clip", "Relu", "Add", "QuantizeLinear", "Cast")
            if reader.op_type in ("Clip", "Relu"):  # a Cast: to a layer in FP16, such as a depthwise one
                after = {r.op_type for r in view.readers[reader.output[0]]}
                assert "QuantizeLinear" in after or after <= {"Cast", "Mul", "Concat", "Resize"}


def test_the_file_shrinks_to_a_third(fp32: ModelProto, int8_and_fp16: ModelProto) -> None:
    onnx.checker.check_model(int8_and_fp16, full_check=True)
    assert int8_and_fp16.opset_import[0].version == 17
    transposed = sum(GraphView(fp32).weight(x.weight).nbytes for x in GraphView(fp32).layers() if x.is_transposed)
    # Transposed convolutions, a sixth of ResNet-18's weights, stay FP16.
    assert int8_and_fp16.ByteSize() <= 0.35 * fp32.ByteSize() + transposed / 4


def test_it_answers_like_fp32(fp32: ModelProto, int8_and_fp16: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    answers = run(as_stored(int8_and_fp16), frames_u8)
    assert map_cosines(run(fp32, frames_u8).maps, answers.maps).min() > 0.97


def test_nothing_chosen_changes_nothing(fp32: ModelProto) -> None:
    none = quantised(fp32, [], {})
    assert none.model == fp32 and not none.int8_nodes


def test_one_layer_is_the_product_of_rounded_values(frames_u8: NDArray[np.uint8]) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 3, 1, 1)).astype(np.float32)
    weight[2] = 0.0
    model = one_convolution(weight)
    layer = GraphView(model).layers()[0]
    view = GraphView(quantised(model, [layer], {"nchw": 200.0}).model)
    scale = numpy_helper.to_array(view.initialisers["w.weight_scale"])
    assert scale[2] == 1.0, "a channel of zeros has a scale as well"
    coarse = np.clip(np.rint(frames_u8[:1].astype(np.float32) / (200 / 127)), -128, 127) * np.float32(200 / 127)
    stored = numpy_helper.to_array(view.initialisers["w.weight_int8"]) * scale[:, None, None, None]
    expected = np.einsum("nhwc,oc->nohw", coarse, stored[:, :, 0, 0]).max(axis=1, keepdims=True)
    answers = run(quantised(model, [layer], {"nchw": 200.0}).model, frames_u8[:1])
    assert np.allclose(answers.maps[:, None], expected, atol=1e-3)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_a_range_that_is_no_range_is_refused(limit: float) -> None:
    model = one_convolution(np.ones((4, 3, 1, 1), np.float32))
    with pytest.raises(ExportError, match="tensor nchw has the range"):
        quantised(model, GraphView(model).layers(), {"nchw": limit})


def one_convolution(weight: NDArray[np.float32], kind: str = "Conv") -> ModelProto:
    """Frame (1, 64, 64, 3) -> 1x1 convolution -> highest channel as the map -> its maximum as the score."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(kind, ["nchw", "w.weight"], ["features"]),
        helper.make_node("ReduceMax", ["features"], ["anomaly_map"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *SIZE_HW, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, *SIZE_HW]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(weight, "w.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
