"""What ONNX Runtime attains at most on this CPU: operations of products, and bytes a second by how many they are.

Kernels of the graph's own kinds, in sessions as the backend opens them, because a bound must take the fastest there is:
a convolution in ONNX Runtime's blocked layout does twice the operations of its matrix product on some CPUs, which does
more than NumPy's. Small tensors stay in a cache, so memory has a rate for each size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rdedge.backends.ort import open_session

Array = NDArray[np.generic]
SIDES = (512, 1024)  # of a matrix product
CONVOLUTIONS = ((64, 64, 3), (128, 32, 3), (256, 16, 3), (256, 64, 1), (512, 32, 1))  # channels, side in pixels, kernel
SUM_VALUES = tuple(4**power for power in range(6, 13))  # float32 of each term, 16 kB to 64 MB
_FEW, _MANY = 4, 32  # sums in a row, so that starting a session does not count


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call that does ``amount`` operations, or moves so many bytes, ``at_once`` of them before the next sum."""

    kind: str  # fp32, int8, memory
    amount: float
    run: Callable[[], object]
    at_once: float = 0.0


@dataclass(frozen=True, slots=True)
class Attained:
    """The highest rates seen: operations a second by precision, and pairs of bytes and bytes a second, small first."""

    ops_s: dict[str, float]
    bytes_s: tuple[tuple[float, float], ...]

    def memory_s(self, moved: float) -> float:
        """Seconds that so many bytes take at least: at the best rate of any measured amount that is not smaller.

        What is smaller than all has the best rate of all, what is larger than all the largest's.
        """
        rates = [rate for size, rate in self.bytes_s if size >= moved] or [self.bytes_s[-1][1]]
        return moved / max(rates)


def attained(kernels: list[Kernel], fastest_s: list[float]) -> Attained:
    """From the fastest time of each kernel."""
    rates = [kernel.amount / seconds for kernel, seconds in zip(kernels, fastest_s, strict=True)]
    ops_s = {
        kind: max(rate for kernel, rate in zip(kernels, rates, strict=True) if kernel.kind == kind)
        for kind in ("fp32", "int8")
    }
    memory = [(k.at_once, rate) for k, rate in zip(kernels, rates, strict=True) if k.kind == "memory"]
    return Attained(ops_s | {"int8": max(ops_s.values())}, tuple(sorted(memory)))


def kernels(
    sides: Sequence[int] = SIDES,
    convolutions: Sequence[tuple[int, int, int]] = CONVOLUTIONS,
    sum_values: Sequence[int] = SUM_VALUES,
) -> list[Kernel]:
    """Products and convolutions in both precisions, and sums of every size."""
    rng = np.random.default_rng(0)
    found = []
    for side in sides:
        x, w = (rng.random((side, side), np.float32) - 0.5 for _ in range(2))
        found += _products(helper.make_node("MatMul", ["x", "w"], ["y"]), x, w, x.shape, 2.0 * side**3)
    for channels, side, kernel in convolutions:
        x = rng.random((1, channels, side, side), np.float32) - 0.5
        w = rng.random((channels, channels, kernel, kernel), np.float32) - 0.5
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4)
        found += _products(node, x, w, x.shape, 2.0 * w.size * side**2)
    return found + [_sums(count) for count in sum_values]


def _products(
    node: NodeProto, x: NDArray[np.float32], w: NDArray[np.float32], shape: tuple[int, ...], operations: float
) -> list[Kernel]:
    """A node in FP32, and between Q/DQ pairs: symmetric as our graphs have it, and of unsigned activations."""
    found = [Kernel("fp32", operations, _call(_model([node], {"x": x}, {"w": w}, shape), {"x": x}))]
    for dtype, zero in ((np.int8, 0), (np.uint8, 128)):
        constants: dict[str, Array] = {
            "scale": np.asarray(0.01, np.float32),
            "zero": np.asarray(zero, dtype),
            "w_zero": np.asarray(0, np.int8),
            "w_int8": np.clip(w * 254.0, -127, 127).astype(np.int8),
        }
        inner = NodeProto()
        inner.CopyFrom(node)
        inner.output[0] = "y_wide"
        nodes = [
            helper.make_node("DequantizeLinear", ["x_int8", "scale", "zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["w_int8", "scale", "w_zero"], ["w"]),
            inner,
            helper.make_node("QuantizeLinear", ["y_wide", "scale", "zero"], ["y"]),
        ]
        feeds: dict[str, Array] = {"x_int8": np.clip(x * 254.0 + zero, zero - 127, zero + 127).astype(dtype)}
        found.append(Kernel("int8", operations, _call(_model(nodes, feeds, constants, shape), feeds)))
    return found


def _sums(count: int) -> Kernel:
    """a + b, and b added again and again: each reads two tensors and writes one."""
    times = _MANY if count <= 1 << 20 else _FEW
    nodes = [helper.make_node("Add", [f"y{k}" if k else "a", "b"], [f"y{k + 1}"]) for k in range(times)]
    nodes[-1].output[0] = "y"
    feeds: dict[str, Array] = {"a": np.ones(count, np.float32), "b": np.ones(count, np.float32)}
    at_once = 3.0 * 4.0 * count
    return Kernel("memory", at_once * times, _call(_model(nodes, feeds, {}, (count,)), feeds), at_once)


def _model(
    nodes: list[NodeProto], feeds: dict[str, Array], constants: dict[str, Array], shape: tuple[int, ...]
) -> ModelProto:
    """``y`` has the type of the first input."""
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", next(iter(types.values()), TensorProto.FLOAT), shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _call(model: ModelProto, feeds: dict[str, Array]) -> Callable[[], object]:
    session = open_session(model.SerializeToString())
    return lambda: session.run(None, feeds)
