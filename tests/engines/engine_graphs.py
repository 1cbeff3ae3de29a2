"""A tiny real model in three precisions: darkness through a 1x1 convolution, with an FP32 island behind it."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE_HW = (32, 48)


def tiny_graph(precision: str, size_hw: tuple[int, int] = SIZE_HW, batch: int = 1) -> bytes:
    """ONNX bytes; ``anomaly_map`` is 1 - mean(R, G, B) / 255 but for the precision's rounding."""
    height, width = size_hw
    real = np.float16 if precision == "fp16" else np.float32
    constants = {
        "scale": np.array(1 / 255, real),
        "weights": np.full((1, 3, 1, 1), 1 / 3, real),
        "one": np.array(1.0, np.float32),
        "step": np.array(1 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "channels": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node(
            "Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT16 if real is np.float16 else TensorProto.FLOAT
        ),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["x"]),
    ]
    if precision == "int8":
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
            helper.make_node("Conv", ["xd", "weights"], ["body"]),
        ]
    else:
        nodes += [helper.make_node("Conv", ["x", "weights"], ["body"])]
    if precision == "int8":  # its judging part begins without a cast, as behind quantised layers
        nodes += [
            helper.make_node("Mul", ["body", "one"], ["product"]),
            helper.make_node("ReduceSum", ["product", "channels"], ["brightness"]),
        ]
    else:
        nodes += [
            helper.make_node("Cast", ["body"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "one"], ["brightness"]),
        ]
    nodes += [
        helper.make_node("Sub", ["one", "brightness"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, height, width, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch, 1, height, width]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
