"""The exported graph: what every engine needs of it, nothing of the machine it was made on, PyTorch's answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import TensorProto

from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.errors import ExportError
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import fit_head, fit_whitening
from rdedge_train.model import Detector
from rdedge_train.residual_head import ResidualHead
from rdedge_train.run_folder import open_run
from rdedge_train.teachers import load_teacher_weights

DrawWasher = Callable[..., NDArray[np.uint8]]


@dataclass(frozen=True)
class Exported:
    """A detector, its graph and frames to ask both."""

    detector: Detector
    path: Path
    frames_u8: NDArray[np.uint8]


CASES = {
    "edge-lite0, position head": ("edge-lite0", "imagenet", "mff+oce", "position", (64, 64)),
    "edge-lite0, residual head": ("edge-lite0", "imagenet", "mff+oce", "residual", (64, 96)),
    "edge-lite0, plain head, strip": ("edge-lite0", "imagenet", "mff+oce", "plain", (32, 96)),
    "resnet18": ("resnet18", "random:1", "mff+oce", "plain", (64, 96)),
}


@pytest.fixture(scope="module", params=CASES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, draw_washer: DrawWasher
) -> Exported:
    """A detector whose batch norms and head have seen parts, as after training."""
    model, weights, ocbe, head, size_hw = CASES[request.param]
    frames_u8 = np.stack([draw_washer(i, size_hw, is_scratched=i > 3) for i in range(6)])
    torch.manual_seed(3)
    detector = Detector(model, size_hw, ocbe=ocbe, head=head)
    load_teacher_weights(detector.teacher, model, weights)
    with torch.no_grad():
        detector.train()(torch.from_numpy(frames_u8[:4]))
        detector.eval()
    cpu = torch.device("cpu")
    features = TeacherFeatures(quick_teacher(detector.teacher, size_hw, cpu), frames_u8[:4], cpu, budget_bytes=2**30)
    fit_whitening(detector, features)
    fit_head(detector, features, tolerance="light+jig", seed=0)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    path.write_bytes(onnx_graph(detector, graph_spec(size_hw)))
    return Exported(detector, path, frames_u8)


def test_answers_equal_pytorchs(exported: Exported) -> None:
    """At most 2e-5 where this was measured."""
    backend = OnnxRuntimeBackend(exported.path, graph_spec(exported.frames_u8.shape[1:3]))
    for frame_u8 in exported.frames_u8:
        expected_map, expected_score = exported.detector.predict(torch.from_numpy(frame_u8[np.newaxis]))
        answer = backend.infer(frame_u8[np.newaxis])
        # Four frames leave the residual head directions without variance, whose rounding it magnifies.
        atol = 1e-3 if isinstance(exported.detector.head, ResidualHead) else 1e-4
        np.testing.assert_allclose(answer.anomaly_map, expected_map.numpy(), rtol=0, atol=atol)
        np.testing.assert_allclose(answer.score, expected_score.numpy(), rtol=0, atol=atol)


def test_every_engine_can_read_it(exported: Exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_cast_is_the_first_node(exported: Exported) -> None:
    first, *others = onnx.load(exported.path).graph.node
    assert (first.op_type, list(first.input)) == ("Cast", ["frame"])
    assert first.attribute[0].i == TensorProto.FLOAT
    assert not [node for node in others if "frame" in node.input]


def test_names_types_and_static_shapes(exported: Exported) -> None:
    graph = onnx.load(exported.path).graph
    height, width = exported.frames_u8.shape[1:3]
    tensors = {}
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        assert all(d.HasField("dim_value") for d in tensor.shape.dim), f"{value.name} has a dynamic side"
        tensors[value.name] = (tensor.elem_type, [d.dim_value for d in tensor.shape.dim])
    assert tensors == {
        "frame": (TensorProto.UINT8, [1, height, width, 3]),
        "anomaly_map": (TensorProto.FLOAT, [1, 1, height, width]),
        "score": (TensorProto.FLOAT, [1]),
    }
    assert [v.name for v in graph.input] == ["frame"]
    assert [v.name for v in graph.output] == ["anomaly_map", "score"]


def texts(message: Message) -> Iterator[str]:
    """Every string anywhere in a protobuf message, with its field's name."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from texts(item)
            elif isinstance(item, str):
                yield f"{field.name}: {item}"


def test_nothing_of_this_machine_stays_in_the_file(exported: Exported) -> None:
    model = onnx.load(exported.path)
    found = list(texts(model))
    assert "producer_name: pytorch" in found
    assert not [text for text in found if "/" in text or "\\" in text or ".py" in text]
    assert not [text for text in found if text.startswith(("doc_string: ", "key: ", "value: ")) and text[-2:] != ": "]
    assert not model.metadata_props
    assert not model.graph.value_info
    assert os.getcwd().encode() not in exported.path.read_bytes()


def test_exporting_leaves_the_detector_as_it_was_and_gives_the_same_bytes_again(
    tiny_run: Path, tiny_bundle: Path
) -> None:
    detector = open_run(tiny_run).detector.train()
    state = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    assert onnx_graph(detector, graph_spec((64, 64))) == (tiny_bundle / "model.onnx").read_bytes()
    assert detector.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in detector.state_dict().items())


class Antialiased(Detector):
    """Uses an option that came with opset 18."""

    def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        anomaly_map, score = super().forward(frame)
        small = torch.nn.functional.interpolate(anomaly_map, scale_factor=0.5, mode="bilinear", antialias=True)
        return torch.nn.functional.interpolate(small, scale_factor=2.0, mode="nearest"), score


def test_a_graph_that_older_engines_cannot_read_is_refused() -> None:
    with pytest.raises(ExportError) as caught:
        onnx_graph(Antialiased("edge-lite0", (64, 64)), graph_spec((64, 64)))
    assert caught.value.remedy == "report this model"
    assert "\n" not in str(caught.value)
