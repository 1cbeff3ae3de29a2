"""What PyTorch trains with roundings in the loop is the graph that is exported; folding changes no answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, numpy_helper
from torch import Tensor, nn

from rdedge.errors import ExportError
from rdedge_export.fake_quant import FakeQuantised, rounded_activation, rounded_weight
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.graph_view import GraphView, Layer
from rdedge_export.observers import observe, session
from rdedge_export.qdq import quantisable, quantised, tensors_to_observe, weight_scales
from rdedge_train.fold import folded
from rdedge_train.model import Detector
from rdedge_train.teachers import load_teacher_weights

SIZE_HW = (64, 64)
MODELS = {"edge-lite0": "imagenet", "resnet18": "random:0"}


def detector_of(model: str) -> Detector:
    """With batch norms that have seen something."""
    torch.manual_seed(0)
    detector = Detector(model, SIZE_HW)
    load_teacher_weights(detector.teacher, model, MODELS[model])
    for module in detector.restorer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    detector.restorer.train()
    with torch.no_grad():
        for _ in range(20):
            detector.level_maps(detector.teacher(torch.from_numpy(squares_u8(4))))
    return detector.eval()


def squares_u8(n: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module", params=MODELS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return detector_of(request.param)


@pytest.fixture(scope="module")
def plain(detector: Detector) -> Detector:
    return folded(detector, torch.zeros((1, *SIZE_HW, 3), dtype=torch.uint8))


@pytest.fixture(scope="module")
def graph(plain: Detector) -> ModelProto:
    return onnx.load_from_string(onnx_graph(plain, graph_spec(SIZE_HW)))


@pytest.fixture(scope="module")
def limits(graph: ModelProto) -> Mapping[str, float]:
    layers = quantisable(graph, with_transposed=True)
    return observe(graph, tensors_to_observe(graph, layers), squares_u8(4)).limits("percentile-99.99")


def answers_of(network: FakeQuantised, model: ModelProto) -> list[tuple[Tensor, NDArray[np.float32]]]:
    """The student's features by PyTorch and by ONNX Runtime, level by level."""
    tapped = ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.extend(ValueInfoProto(name=name) for name in network.features)
    frame_u8 = squares_u8(1)
    expected = session(tapped).run(network.features, {"frame": frame_u8})
    expected.sort(key=lambda feature: -feature.shape[2])
    with torch.no_grad():
        return list(zip(network(torch.from_numpy(frame_u8)), expected, strict=True))


def test_folding_leaves_no_batch_norm_and_every_answer(detector: Detector, plain: Detector) -> None:
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()), "the original is untouched"
    frames = torch.from_numpy(squares_u8(4))
    for ours, theirs in zip(plain.predict(frames), detector.predict(frames), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)


def test_folded_layers_keep_their_names(detector: Detector, graph: ModelProto) -> None:
    before = GraphView(onnx.load_from_string(onnx_graph(detector, graph_spec(SIZE_HW))))
    assert [layer.name for layer in GraphView(graph).layers()] == [layer.name for layer in before.layers()]


def test_nothing_quantised_is_the_student_itself(plain: Detector, graph: ModelProto) -> None:
    network = FakeQuantised(graph, plain.state_dict())
    assert len(network.features) == 3
    for ours, expected in answers_of(network, graph):
        assert np.allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_each_quantised_layer_is_the_graphs(plain: Detector, graph: ModelProto, limits: Mapping[str, float]) -> None:
    """One by one: with all of them, a last digit that falls on the other side of a step grows from layer to layer."""
    student = [layer for layer in quantisable(graph, with_transposed=True) if layer.name.startswith("restorer.")]
    transposed = [layer for layer in student if layer.is_transposed][:2]
    chosen: list[Layer] = [*student[:3], *transposed, *student[-3:]]
    exact = [feature for feature, _ in answers_of(FakeQuantised(graph, plain.state_dict()), graph)]
    for layer in chosen:
        model = quantised(graph, [layer], limits).model
        answers = answers_of(FakeQuantised(model, plain.state_dict()), model)
        errors = [float(np.abs(ours.numpy() - expected).mean()) for ours, expected in answers]
        costs = [
            float(np.abs(feature.numpy() - expected).mean())
            for feature, (_, expected) in zip(exact, answers, strict=True)
        ]
        assert max(costs) > 1e-5, "quantising shows"
        assert max(errors) < 0.05 * max(costs), layer.name


def test_all_layers_together_differ_no_more_than_rounding(
    plain: Detector, graph: ModelProto, limits: Mapping[str, float]
) -> None:
    model = quantised(graph, quantisable(graph), limits).model
    for ours, expected in answers_of(FakeQuantised(model, plain.state_dict()), model):
        assert torch.cosine_similarity(ours.flatten(), torch.from_numpy(expected).flatten(), dim=0) > 0.99


def test_weights_are_rounded_as_they_are_stored() -> None:
    weight = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    weight[2], weight[:, 3] = 0.0, weight[:, 3] * 50.0
    for axis in (0, 1):
        scale = weight_scales(weight.numpy(), axis)
        expected = np.clip(np.rint(weight.numpy() / scale), -127, 127) * scale
        assert np.allclose(rounded_weight(weight, axis).numpy(), expected, atol=1e-6)


def test_gradients_go_straight_through_and_end_at_the_range() -> None:
    scale = torch.tensor(0.5)
    x = torch.tensor([0.1, 0.4, -3.3, 70.0, -70.0], requires_grad=True)
    y = rounded_activation(x, scale)
    assert y.tolist() == [0.0, 0.5, -3.5, 63.5, -64.0]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    weight = torch.tensor([[[[0.3]]], [[[0.0]]]], requires_grad=True)
    rounded_weight(weight, 0).sum().backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [1.0, 1.0]


def test_only_bottleneck_and_student_are_trained(
    plain: Detector, graph: ModelProto, limits: Mapping[str, float]
) -> None:
    network = FakeQuantised(quantised(graph, quantisable(graph), limits).model, plain.state_dict())
    assert set(network.trained) == {name for name, _ in plain.named_parameters() if name.startswith("restorer.")}
    sum(feature.square().mean() for feature in network(torch.from_numpy(squares_u8(1)))).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not without


def test_an_operation_it_does_not_know_is_refused(plain: Detector, graph: ModelProto) -> None:
    model = ModelProto()
    model.CopyFrom(graph)
    next(node for node in model.graph.node if node.op_type == "Concat").op_type = "Einsum"
    with pytest.raises(ExportError, match="--qat knows no Einsum; export without --qat"):
        FakeQuantised(model, plain.state_dict())


def test_weights_are_taken_from_what_is_given(plain: Detector, graph: ModelProto) -> None:
    weights = dict(plain.state_dict())
    name = GraphView(graph).layers()[-1].weight
    weights[name] = weights[name] * 2.0
    doubled = answers_of(FakeQuantised(graph, weights), graph)
    assert not all(np.allclose(ours, expected) for ours, expected in doubled)
    assert numpy_helper.to_array(GraphView(graph).initialisers[name]).shape == tuple(weights[name].shape)
