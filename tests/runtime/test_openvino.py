"""OpenVINO on the CPU: FP32 stays FP32 whatever the processor offers, INT8 graphs run, failures are ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rdedge.backends.openvino import OpenVinoBackend
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.contract import GraphSpec, TensorSpec
from rdedge.errors import BackendError, MissingExtraError

SIDE, CHANNELS = 16, 32
SIGNED, UNSIGNED = (np.int8(0), 127), (np.uint8(0), 255)  # zero point and steps up to the limit of what a ReLU gave
Rounding = tuple[np.int8 | np.uint8, int]
FRAME = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
GRAPH = GraphSpec(
    opset=17,
    frame=TensorSpec(name="frame", dtype="uint8", shape=(1, SIDE, SIDE, 3)),
    anomaly_map=TensorSpec(name="anomaly_map", dtype="float32", shape=(1, 1, SIDE, SIDE)),
    score=TensorSpec(name="score", dtype="float32", shape=(1,)),
)


def as_model(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    """Nodes from ``frame`` to ``anomaly_map`` and ``score``, with those constants that they read."""
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, GRAPH.frame.shape)],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, GRAPH.anomaly_map.shape),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, GRAPH.score.shape),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def convolutions(*, with_int8: bool, rounding: Rounding = SIGNED) -> bytes:
    """Two convolutions and their maximum; the second with Q/DQ pairs as rdedge_export.qdq writes them, if signed."""
    rng = np.random.default_rng(1)
    last = rng.normal(0.0, 1.0 / CHANNELS, (1, CHANNELS, 3, 3)).astype(np.float32)
    scale = np.abs(last).max(axis=(1, 2, 3)) / np.float32(127)
    constants = {
        "first": rng.normal(0.0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "full": np.float32(255.0),
        "last": last,
        "last_int8": np.rint(last / scale).astype(np.int8),
        "last_scale": scale,
        "zeros": np.zeros(1, np.int8),
        "zero": rounding[0],
        "scale": np.float32(4.0 / rounding[1]),
    }
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "full"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "first"], ["sums"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["sums"], ["features"]),
    ]
    source, weight = "features", "last"
    if with_int8:
        source, weight = "features_back", "last_back"
        nodes += [
            helper.make_node("QuantizeLinear", ["features", "scale", "zero"], ["features_int8"]),
            helper.make_node("DequantizeLinear", ["features_int8", "scale", "zero"], [source]),
            helper.make_node("DequantizeLinear", ["last_int8", "last_scale", "zeros"], [weight], axis=0),
        ]
    nodes += [
        helper.make_node("Conv", [source, weight], ["anomaly_map"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    return as_model(nodes, constants)


@pytest.mark.parametrize("with_int8", [False, True], ids=["fp32", "int8"])
def test_it_answers_as_onnx_runtime_does(tmp_path: Path, with_int8: bool) -> None:
    path, reference = tmp_path / "model.onnx", tmp_path / "reference.onnx"
    path.write_bytes(convolutions(with_int8=with_int8))
    reference.write_bytes(convolutions(with_int8=with_int8, rounding=UNSIGNED))  # what is never negative, on the CPU
    got, expected = OpenVinoBackend(path, GRAPH).infer(FRAME), OnnxRuntimeBackend(reference, GRAPH).infer(FRAME)
    largest = float(np.abs(expected.anomaly_map).max())
    # bfloat16, OpenVINO's default on processors that have it, is off by 4e-3; one INT8 step of one feature by 1e-3
    tolerance = (2e-3 if with_int8 else 1e-5) * largest
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=tolerance)
    np.testing.assert_allclose(got.score, got.anomaly_map.max(), rtol=1e-6)


def branches(rounding: Rounding = SIGNED) -> bytes:
    """Three branches of different scale, concatenated, rounded to INT8 together, and summed by a convolution."""
    rng = np.random.default_rng(2)
    constants: dict[str, np.ndarray] = {
        "full": np.float32(255.0),
        "zero": np.int8(0),
        "unit_scale": np.float32(1.0 / 127),
        "zero_together": rounding[0],
        "scale": np.float32(60.0 / rounding[1]),
    }
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "full"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["image", "unit_scale", "zero"], ["image_int8"]),
        helper.make_node("DequantizeLinear", ["image_int8", "unit_scale", "zero"], ["image_back"]),
    ]

    def convolve(source: str, out: str, shape: tuple[int, int], gain: float) -> None:
        weight = rng.normal(0.0, gain, (*shape, 1, 1)).astype(np.float32)
        scale = np.abs(weight).max(axis=(1, 2, 3)) / np.float32(63)  # twice as much saturates on x86 without VNNI
        parts = (np.rint(weight / scale[:, None, None, None]).astype(np.int8), scale, np.zeros(shape[0], np.int8))
        names = [f"{out}_weight", f"{out}_scale", f"{out}_zeros"]
        constants.update(zip(names, parts, strict=True))
        nodes.append(helper.make_node("DequantizeLinear", names, [f"{out}_back"], axis=0))
        nodes.append(helper.make_node("Conv", [source, f"{out}_back"], [out]))

    for index, gain in enumerate((0.5, 3.0, 20.0)):
        convolve("image_back", f"sums{index}", (CHANNELS, 3), gain)
        nodes.append(helper.make_node("Relu", [f"sums{index}"], [f"branch{index}"]))
    nodes += [
        helper.make_node("Concat", ["branch0", "branch1", "branch2"], ["together"], axis=1),
        helper.make_node("QuantizeLinear", ["together", "scale", "zero_together"], ["together_int8"]),
        helper.make_node("DequantizeLinear", ["together_int8", "scale", "zero_together"], ["together_back"]),
    ]
    convolve("together_back", "anomaly_map", (1, 3 * CHANNELS), 1.0)
    nodes.append(helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0))
    return as_model(nodes, constants)


def test_rounding_behind_a_concatenation_stays_there(tmp_path: Path) -> None:
    path, reference = tmp_path / "model.onnx", tmp_path / "reference.onnx"
    path.write_bytes(branches())
    reference.write_bytes(branches(UNSIGNED))
    got, expected = OpenVinoBackend(path, GRAPH).infer(FRAME), OnnxRuntimeBackend(reference, GRAPH).infer(FRAME)
    error = np.abs(got.anomaly_map - expected.anomaly_map).max()
    assert error < 0.02 * expected.anomaly_map.std(), "it is of the size of the map where OpenVINO moves the rounding"


def test_a_read_only_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(convolutions(with_int8=False))
    backend, frozen = OpenVinoBackend(path, GRAPH), FRAME.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(backend.infer(frozen).score, backend.infer(FRAME).score)


def test_without_the_library_the_extra_is_named(
    bundle: Path, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"OpenVINO cannot be loaded .*pip install 'rdedge\[openvino\]'"):
        OpenVinoBackend(bundle / "model.onnx", graph)


def test_a_file_that_is_no_graph_is_refused_quietly(
    tmp_path: Path, graph: GraphSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    for data in (b"not a graph", b"\x08\x08\x3a\x04half"):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(BackendError, match=r"model\.onnx: OpenVINO refuses it \(.+\); export the bundle again"):
            OpenVinoBackend(tmp_path / "model.onnx", graph)
    with pytest.raises(BackendError, match=r"absent\.onnx: OpenVINO refuses it \(.+\); export the bundle again"):
        OpenVinoBackend(tmp_path / "absent.onnx", graph)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tensor", ["frame", "anomaly_map", "score"])
def test_a_graph_that_is_not_the_contracts_is_refused(bundle: Path, graph: GraphSpec, tensor: str) -> None:
    spec = getattr(graph, tensor)
    renamed = replace(graph, **{tensor: replace(spec, name="other")})
    with pytest.raises(BackendError, match="tensor other is no tensor of this name, the contract says"):
        OpenVinoBackend(bundle / "model.onnx", renamed)


def test_a_graph_of_another_size_is_refused(write_bundle: Callable[..., Path], graph: GraphSpec) -> None:
    other = write_bundle("other", size_hw=(32, 32)) / "model.onnx"
    with pytest.raises(BackendError, match=r"tensor frame is \('u8', \(1, 32, 32, 3\)\), the contract says"):
        OpenVinoBackend(other, graph)
