"""The FP16 graph obeys its types, stays near FP32 on real frames, and no overflow goes unseen."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rdedge.errors import ExportError
from rdedge_export.fp16 import as_stored, unfit_for_fp16, with_fp16
from rdedge_export.gate import run
from rdedge_export.graph_view import GraphView, float_types
from rdedge_export.map_cosine import map_cosines
from rdedge_export.observers import largest_magnitudes

SIZE_HW = (64, 64)


@pytest.fixture(scope="module")
def frames_u8() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE_HW, 3), dtype=np.uint8)


def all_but_judging(fp32: ModelProto) -> set[str]:
    view = GraphView(fp32)
    return set(view.nodes) - view.judging()


def tiny(*nodes: onnx.NodeProto, constants: dict[str, float]) -> ModelProto:
    """A graph from x float32 (2,) to y float32 (2,)."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    y: NDArray[np.float32] = ort.InferenceSession(model.SerializeToString()).run(["y"], {"x": x})[0]
    return y


def test_inputs_and_outputs_stay_as_they_are(fp32: ModelProto) -> None:
    typed = with_fp16(fp32, all_but_judging(fp32))
    assert list(typed.graph.input) == list(fp32.graph.input)
    assert list(typed.graph.output) == list(fp32.graph.output)


def test_every_node_chosen_is_fp16_and_no_other(fp32: ModelProto) -> None:
    chosen = all_but_judging(fp32)
    types = float_types(with_fp16(fp32, chosen))
    for output in GraphView(fp32).nodes:
        assert types[output] == (TensorProto.FLOAT16 if output in chosen else TensorProto.FLOAT), output


def test_weights_are_stored_once_and_in_half_the_bytes(fp32: ModelProto) -> None:
    typed = with_fp16(fp32, all_but_judging(fp32))
    assert typed.ByteSize() <= 0.55 * fp32.ByteSize()
    assert len({tensor.name for tensor in typed.graph.initializer}) == len(typed.graph.initializer)
    read = {name for node in typed.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in typed.graph.initializer)


def test_a_cast_stands_only_where_the_type_changes(fp32: ModelProto) -> None:
    typed = with_fp16(fp32, all_but_judging(fp32))
    view = GraphView(typed)
    types = float_types(typed)
    casts = [node for node in typed.graph.node if node.op_type == "Cast"]
    for node in casts:
        assert types[node.input[0]] != types[node.output[0]]
        assert not any(reader.op_type == "Cast" for reader in view.readers[node.output[0]]), "a chain"
    assert len({node.input[0] for node in casts}) == len(casts)
    assert len(casts) == 1 + 6, "the frame, and teacher and student of three levels"


def test_nothing_chosen_changes_nothing(fp32: ModelProto) -> None:
    typed = with_fp16(fp32, set())
    assert list(typed.graph.node) == list(fp32.graph.node)
    assert GraphView(typed).initialisers == GraphView(fp32).initialisers


def test_a_graph_all_in_fp16_still_answers_in_fp32(fp32: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    typed = with_fp16(fp32, set(GraphView(fp32).nodes) - {"clamp_min"})
    answers = run(typed, frames_u8)
    assert answers.maps.dtype == answers.scores.dtype == np.float32


def test_it_stays_near_fp32_on_real_arithmetic(fp32: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    typed = with_fp16(fp32, all_but_judging(fp32))
    reference = run(fp32, frames_u8)
    for graph in (typed, as_stored(typed)):
        answers = run(graph, frames_u8)
        assert map_cosines(reference.maps, answers.maps).min() > 0.9999
        assert np.abs(answers.scores / reference.scores - 1).max() < 0.01


def test_no_value_overflows_on_any_frame(fp32: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    frames_u8 = np.concatenate([frames_u8, np.zeros_like(frames_u8[:1]), np.full_like(frames_u8[:1], 255)])
    stored = as_stored(with_fp16(fp32, all_but_judging(fp32)))
    largest = largest_magnitudes(stored, [node.output[0] for node in stored.graph.node[1:-1]], frames_u8)
    assert np.isfinite(list(largest.values())).all()
    unfit = unfit_for_fp16(fp32, largest_magnitudes(fp32, sorted(GraphView(fp32).nodes), frames_u8))
    assert {"clamp_min", *(f"clamp_min_{k}" for k in range(1, 6))} <= set(unfit), "the cosine's six norms"
    assert set(unfit) <= GraphView(fp32).judging(), "squares and sums of ResNet-18's features are too large"
    assert unfit["clamp_min"] == "FP16 makes its constant 1e-16 zero"


def test_stored_values_are_rounded_as_numpy_rounds_them() -> None:
    model = tiny(
        helper.make_node("Mul", ["x", "third"], ["a"]),
        helper.make_node("Add", ["a", "third"], ["y"]),
        constants={"third": 1 / 3},
    )
    x = np.array([0.1, 1234.5], np.float32)
    third = np.float32(np.float16(1 / 3))

    def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.astype(np.float16).astype(np.float32)

    expected = rounded(rounded(rounded(x) * third) + third)
    assert (answer(as_stored(with_fp16(model, {"a", "y"})), x) == expected).all()


def test_an_overflow_that_onnx_runtime_hides_is_seen() -> None:
    model = tiny(
        helper.make_node("Mul", ["x", "much"], ["a"]),
        helper.make_node("Mul", ["a", "little"], ["y"]),
        constants={"much": 300.0, "little": 1 / 256},
    )
    typed = with_fp16(model, {"a", "y"})
    x = np.array([100.0, 1000.0], np.float32)
    assert np.isfinite(answer(typed, x)).all(), "ONNX Runtime computes in FP32 between nodes"
    assert np.isfinite(answer(as_stored(typed), x)).tolist() == [True, False]
    reason = "a reaches 3e+05, FP16 ends at 65504"
    assert unfit_for_fp16(model, {"x": 1000.0, "a": 300_000.0, "y": 1172.0}) == {"a": reason, "y": reason}
    assert not unfit_for_fp16(model, {"x": 100.0, "a": 30_000.0, "y": 117.0})


def test_a_constant_beyond_the_range_is_refused_not_clamped() -> None:
    model = tiny(helper.make_node("Mul", ["x", "huge"], ["y"]), constants={"huge": 70_000.0})
    assert unfit_for_fp16(model, {}) == {"y": "huge reaches 7e+04, FP16 ends at 65504"}
    with pytest.raises(ExportError, match=r"huge reaches 7e\+04, FP16 ends at 65504; "):
        with_fp16(model, {"y"})
