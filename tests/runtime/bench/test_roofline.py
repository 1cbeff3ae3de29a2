"""The count behind the roofline: known operations, bytes and layers of small graphs, and the sums made of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from layers import Layer, layers_of, precision_bytes
from roofline import DEVICES, Device, layer_s, predict

FLOAT = TensorProto.FLOAT
DEVICE = Device(fp32=1.0, fp16=2.0, int8=4.0, gb_s=100.0, source="made up")


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: list[str], weights: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(k, TensorProto.UINT8 if k == "frame" else FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def test_a_convolution_with_its_activation_is_one_layer() -> None:
    nodes = [node("Conv", "x w b", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", "c", "y")]
    (layer,) = layers_of(model(nodes, {"x": [1, 3, 8, 10]}, ["y"], {"w": (16, 3, 3, 3), "b": (16,)}))
    assert layer.matrix_ops == 2 * 16 * 8 * 10 * 3 * 3 * 3 and layer.vector_ops == 16 * 8 * 10
    assert layer.weights == 16 * 3 * 3 * 3 + 16
    assert layer.values == 3 * 8 * 10 + 16 * 8 * 10, "the tensor between the two never reaches memory"
    assert precision_bytes(layer, "fp32") == 4 * (layer.values + layer.weights)
    assert precision_bytes(layer, "fp16") == 2 * (layer.values + layer.weights)
    assert precision_bytes(layer, "int8") == layer.values + layer.weights


def test_a_residual_sum_joins_and_its_branch_is_read() -> None:
    nodes = [
        node("Conv", "x v", "a", kernel_shape=[1, 1]),
        node("Conv", "a w", "c", kernel_shape=[1, 1]),
        node("Add", "a c", "y"),
    ]
    first, second = layers_of(model(nodes, {"x": [1, 4, 2, 2]}, ["y"], {"v": (4, 4, 1, 1), "w": (4, 4, 1, 1)}))
    assert first.values == 16 + 16
    assert second.values == 16 + 16, "a is read once by the layer, y is written, c stays inside"
    assert second.vector_ops == 16


def test_depthwise_and_grouped_and_transposed_convolutions() -> None:
    weights = {"d": (4, 1, 3, 3), "g": (8, 2, 1, 1), "t": (8, 5, 2, 2)}
    nodes = [
        node("Conv", "x d", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4),
        node("Conv", "a g", "b", kernel_shape=[1, 1], group=2),
        node("ConvTranspose", "b t", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    depthwise, grouped, transposed = layers_of(model(nodes, {"x": [1, 4, 6, 6]}, ["y"], weights))
    assert (depthwise.matrix_ops, depthwise.vector_ops) == (0.0, 2 * 4 * 36 * 9), "not the tensor cores' work"
    assert grouped.matrix_ops == 2 * 8 * 36 * 2
    assert transposed.matrix_ops == 2 * (8 * 36) * (5 * 2 * 2), "each input pixel meets the whole kernel"
    assert transposed.values == 8 * 36 + 5 * 144


def test_products_shapes_and_constants() -> None:
    nodes = [
        node("Cast", "frame", "f", to=FLOAT),
        node("Cast", "m", "k", to=FLOAT),
        node("Reshape", "f shape", "r"),
        node("MatMul", "r k", "y"),
    ]
    made = model(nodes, {"frame": [1, 2, 3, 4]}, ["y"], {"m": (4, 7)})
    made.graph.initializer.append(numpy_helper.from_array(np.array([6, 4], np.int64), "shape"))
    cast, product = layers_of(made)
    assert cast.bytes_in == 24 and cast.values == 24 and cast.weights == 0
    assert product.matrix_ops == 2 * 6 * 7 * 4 and product.weights == 28 and product.values == 24 + 42
    assert precision_bytes(cast, "int8") == 24 + 2 * 24, "the frame is of bytes in every precision"


@pytest.mark.parametrize(
    ("kind", "shape", "says"), [("Sin", [1, 4], "node Sin is not known"), ("Relu", [0, 4], "has no fixed shape")]
)
def test_what_cannot_be_counted_is_refused(kind: str, shape: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        layers_of(model([node(kind, "x", "y")], {"x": shape}, ["y"], {}))


def test_a_layer_takes_the_dearer_of_work_and_traffic() -> None:
    work = Layer(name="work", kind="Conv", matrix_ops=4e9, values=1000)
    traffic = Layer(name="traffic", kind="Conv", matrix_ops=1e3, values=25_000_000)
    assert [layer_s(work, DEVICE, p) for p in ("fp32", "fp16", "int8")] == pytest.approx([4e-3, 2e-3, 1e-3])  # type: ignore
    assert [layer_s(traffic, DEVICE, p) for p in ("fp32", "fp16", "int8")] == pytest.approx([1e-3, 5e-4, 2.5e-4])  # type: ignore
    one_by_one = Layer(name="vector", kind="Relu", vector_ops=1e9)
    assert layer_s(one_by_one, DEVICE, "int8") == pytest.approx(1e-3), "no tensor core helps"
    found = predict([work, traffic], DEVICE, "fp16", 5.0)
    assert found["roofline_ms"] == pytest.approx(2.5) and found["with_launches_ms"] == pytest.approx(2.51)
    assert found["memory_share"] == pytest.approx(0.2)


def test_published_rates_are_dense_and_named() -> None:
    assert len(DEVICES) == 6
    for name, device in DEVICES.items():
        assert device.fp32 < device.fp16 < device.int8 and device.source, name
        assert 1.9 <= device.int8 / device.fp16 <= 4.1 and device.gb_s >= 68
