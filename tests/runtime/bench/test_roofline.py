"""The count behind the roofline: known operations, bytes and layers of small graphs, and the sums made of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from attainable import Attained, Kernel, attained, kernels
from devices import DEVICES, Device
from layers import Layer, layers_of, precision_bytes
from roofline import cpu_layer_s, layer_s, predict

FLOAT = TensorProto.FLOAT
DEVICE = Device(fp32=1.0, fp16=2.0, int8=4.0, fp16_vector=1.25, gb_s=100.0, source="made up")


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
    assert precision_bytes(layer, "int8") == 2 * (layer.values + layer.weights), "no Q/DQ pair: it stays FP16"


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


def test_q_dq_pairs_are_no_layers_but_say_what_is_int8() -> None:
    """x -Q/DQ-> conv a -> relu -Q/DQ-> conv b; a depthwise convolution reads x as it is, and so does nobody else."""
    nodes = [
        node("Relu", "input", "x"),
        node("QuantizeLinear", "x s z", "x_q"),
        node("DequantizeLinear", "x_q s z", "x_d"),
        node("DequantizeLinear", "w_q s z", "w"),
        node("Conv", "x_d w b", "a", kernel_shape=[1, 1]),
        node("Relu", "a", "r"),
        node("QuantizeLinear", "r s z", "r_q"),
        node("DequantizeLinear", "r_q s z", "r_d"),
        node("DequantizeLinear", "v_q s z", "v"),
        node("Conv", "r_d v", "y", kernel_shape=[1, 1]),
        node("Conv", "x d", "wide", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4),
    ]
    made = model(nodes, {"input": [1, 4, 5, 5]}, ["y", "wide"], {"s": (), "b": (6,), "d": (4, 1, 3, 3)})
    for name, shape in {"z": (), "w_q": (6, 4, 1, 1), "v_q": (2, 6, 1, 1)}.items():
        made.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.int8), name))
    first, a, y, wide = layers_of(made)
    assert [layer.in_int8 for layer in (first, a, y, wide)] == [False, True, True, False]
    assert (first.values, first.int8_values) == (100 + 100, 0), "x is read as it is too, so it is written wide"
    assert (a.values, a.int8_values, a.weights) == (100, 6 * 25, 6 * 4 + 6), "what only a pair reads is written as INT8"
    assert (y.values, y.int8_values, y.weights) == (2 * 25, 6 * 25, 2 * 6)
    assert a.matrix_ops == 2 * 6 * 25 * 4 and a.vector_ops == 6 * 25 and wide.vector_ops == 2 * 4 * 25 * 9
    assert precision_bytes(a, "int8") == 2 * 100 + 150 + 30
    assert precision_bytes(wide, "int8") == 2 * (100 + 100 + 36), "its weights stay FP16"
    assert precision_bytes(a, "fp32") == 4 * (100 + 150 + 30)


@pytest.mark.parametrize(
    ("kind", "shape", "says"), [("Sin", [1, 4], "node Sin is not known"), ("Relu", [0, 4], "has no fixed shape")]
)
def test_what_cannot_be_counted_is_refused(kind: str, shape: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        layers_of(model([node(kind, "x", "y")], {"x": shape}, ["y"], {}))


def test_a_layer_takes_the_dearer_of_work_and_traffic() -> None:
    work = Layer(name="work", kind="Conv", matrix_ops=4e9, values=1000, in_int8=True)
    traffic = Layer(name="traffic", kind="Conv", matrix_ops=1e3, int8_values=25_000_000)
    assert [layer_s(work, DEVICE, p) for p in ("fp32", "fp16", "int8")] == pytest.approx([4e-3, 2e-3, 1e-3])  # type: ignore
    assert [layer_s(traffic, DEVICE, p) for p in ("fp32", "fp16", "int8")] == pytest.approx([1e-3, 5e-4, 2.5e-4])  # type: ignore
    one_by_one = Layer(name="vector", kind="Relu", vector_ops=1e9)
    assert layer_s(one_by_one, DEVICE, "fp32") == pytest.approx(1e-3), "no tensor core helps"
    assert layer_s(one_by_one, DEVICE, "int8") == pytest.approx(0.8e-3), "nor INT8"
    kept_back = Layer(name="kept back", kind="Conv", matrix_ops=4e9, values=1000)
    assert layer_s(kept_back, DEVICE, "int8") == pytest.approx(2e-3), "FP16 in an INT8 graph"
    found = predict([work, traffic], DEVICE, "fp16", 5.0)
    assert found["roofline_ms"] == pytest.approx(2.5) and found["with_launches_ms"] == pytest.approx(2.51)
    assert found["memory_share"] == pytest.approx(0.2)


def test_a_cpus_bound_takes_the_fastest_kernel_and_the_cache_that_could_hold_it() -> None:
    measured = [
        Kernel("fp32", 8e9, _nothing),
        Kernel("fp32", 8e9, _nothing),
        Kernel("int8", 8e9, _nothing),
        *(Kernel("memory", total, _nothing, at_once) for total, at_once in ((1e9, 1e6), (1e9, 1e3), (1e9, 1e9))),
    ]
    rates = attained(measured, [2e-3, 1e-3, 0.5e-3, 1e-3, 2e-3, 4e-3])
    assert rates == Attained({"fp32": 8e12, "int8": 16e12}, ((1e3, 0.5e12), (1e6, 1e12), (1e9, 0.25e12)))
    assert rates.memory_s(100.0) == pytest.approx(100 / 1e12), "small sums are slow for their starts, not their memory"
    assert rates.memory_s(1e6) == pytest.approx(1e-6) and rates.memory_s(2e6) == pytest.approx(2e6 / 0.25e12)
    assert rates.memory_s(1e10) == pytest.approx(1e10 / 0.25e12)
    layer = Layer(name="conv", kind="Conv", matrix_ops=16e9, vector_ops=8e9, values=10, in_int8=True)
    assert cpu_layer_s(layer, rates, "fp32") == pytest.approx(3e-3)
    assert cpu_layer_s(layer, rates, "int8") == pytest.approx(2e-3)
    slow_int8 = attained(measured, [2e-3, 1e-3, 4e-3, 1e-3, 2e-3, 4e-3])
    assert slow_int8.ops_s["int8"] == 8e12, "a runtime without INT8 kernels computes in float32"


def _nothing() -> None:
    """A kernel whose time is given."""


def test_this_cpus_kernels_run_and_do_what_they_say() -> None:
    measured = kernels(sides=(32,), convolutions=((8, 8, 3),), sum_values=(64,))
    assert [(kernel.kind, kernel.amount) for kernel in measured] == [
        *[("fp32", 2 * 32**3), ("int8", 2 * 32**3), ("int8", 2 * 32**3)],
        *[("fp32", 2 * 8 * 8 * 9 * 64), ("int8", 2 * 8 * 8 * 9 * 64), ("int8", 2 * 8 * 8 * 9 * 64)],
        ("memory", 32 * 3 * 4 * 64),
    ]
    assert measured[-1].at_once == 3 * 4 * 64
    results = [np.asarray(kernel.run()[0]) for kernel in measured]  # type: ignore[index]
    assert results[0].shape == (32, 32) and results[3].shape == (1, 8, 8, 8)
    assert [result.dtype for result in results] == [np.float32, np.int8, np.uint8] * 2 + [np.float32]
    assert (results[-1] == 33.0).all(), "1, and 1 added 32 times"


def test_published_rates_are_dense_and_named() -> None:
    assert len(DEVICES) == 7
    for name, device in DEVICES.items():
        assert device.fp32 < device.fp16 < device.int8 and "http" in device.source, name
        assert device.fp32 <= device.fp16_vector <= 2.02 * device.fp32
        assert 1.9 <= device.int8 / device.fp16 <= 4.1 and device.gb_s >= 68
