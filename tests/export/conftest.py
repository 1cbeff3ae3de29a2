"""The FP32 graph of one model of each family, small, shared by the tests of precisions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_train.model import Detector
from rdedge_train.teachers import load_teacher_weights

SIZE_HW = (64, 64)
MODELS = {"edge-lite0": "imagenet", "resnet18": "random:0"}


@pytest.fixture(scope="session", params=MODELS)
def fp32(request: pytest.FixtureRequest) -> ModelProto:
    """Of a detector with an untrained student; for 64x64 frames. Read only."""
    return _graph(request.param)


@pytest.fixture(scope="session")
def resnet() -> ModelProto:
    """The one with transposed convolutions. Read only."""
    return _graph("resnet18")


def _graph(model: str) -> ModelProto:
    torch.manual_seed(0)
    detector = Detector(model, SIZE_HW)
    load_teacher_weights(detector.teacher, model, MODELS[model])
    return onnx.load_from_string(onnx_graph(detector, graph_spec(SIZE_HW)))


@pytest.fixture(scope="session")
def with_position_head() -> ModelProto:
    """A head that is not ours: deviations from a mean by position and channel, whitened, at two levels; read only.

    Network: stem and two layers make the teacher (stride 1), one more layer the student. Head: Sub of a mean
    (1, 8, 64, 64), a product with a whitening (4096, 4, 8), a smoothing convolution, a root of summed squares.
    """
    random = np.random.default_rng(0)

    def near_one(*shape: int) -> np.ndarray:
        return (1.0 + 0.1 * random.normal(size=shape)).astype(np.float32)

    pixels = SIZE_HW[0] * SIZE_HW[1]
    constants = {
        "hundredth": np.float32(0.01),
        "teacher.stem.weight": random.normal(size=(8, 3, 3, 3)).astype(np.float32) / 5,
        "teacher.layer.weight": random.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8,
        "restorer.squeeze.weight": random.normal(size=(8, 8, 1, 1)).astype(np.float32) / 3,
        "restorer.student.weight": random.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8,
        "head.mean": 0.1 * random.normal(size=(1, 8, *SIZE_HW)).astype(np.float32),
        "head.whitening": near_one(pixels, 4, 8),
        "head.smoothing": np.full((1, 1, 3, 3), 1 / 9, np.float32),
        "columns": np.array([pixels, 8, 1], np.int64),
        "map_shape": np.array([1, 1, *SIZE_HW], np.int64),
        "axes": np.array([1, 2], np.int64),
    }
    convolution = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "hundredth"], ["x"]),
        helper.make_node("Conv", ["x", "teacher.stem.weight"], ["stem"], **convolution),
        helper.make_node("Relu", ["stem"], ["stem_relu"]),
        helper.make_node("Conv", ["stem_relu", "teacher.layer.weight"], ["taught"], **convolution),
        helper.make_node("Conv", ["taught", "restorer.squeeze.weight"], ["squeezed"]),
        helper.make_node("Relu", ["squeezed"], ["squeezed_relu"]),
        helper.make_node("Conv", ["squeezed_relu", "restorer.student.weight"], ["restored"], **convolution),
        helper.make_node("Relu", ["restored"], ["student"]),
        helper.make_node("Sub", ["taught", "student"], ["difference"]),
        helper.make_node("Sub", ["difference", "head.mean"], ["deviation"]),
        helper.make_node("Transpose", ["deviation"], ["by_position"], perm=[2, 3, 1, 0]),
        helper.make_node("Reshape", ["by_position", "columns"], ["column"]),
        helper.make_node("MatMul", ["head.whitening", "column"], ["white"]),
        helper.make_node("Mul", ["white", "white"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axes"], ["sum"], keepdims=0),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Reshape", ["root", "map_shape"], ["rough"]),
        helper.make_node("Conv", ["rough", "head.smoothing"], ["anomaly_map"], **convolution),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    spec = graph_spec(SIZE_HW)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "position head",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, spec.frame.shape)],
            [
                helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, spec.anomaly_map.shape),
                helper.make_tensor_value_info("score", TensorProto.FLOAT, spec.score.shape),
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
