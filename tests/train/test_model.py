"""The whole detector: every model builds, takes camera frames and gives a map and a score."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rdedge_train.model import MODELS, STRIDES, Detector, Restorer, family_of
from rdedge_train.paper import RESNETS, Ocbe
from rdedge_train.teachers import Teacher

OCBES: tuple[Ocbe, ...] = get_args(Ocbe)
LIGHT_MODELS = ("edge-lite0", "resnet18")


def random_frames(count: int, size_hw: tuple[int, int]) -> Tensor:
    shape = (count, *size_hw, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(8))


def built(model: str, size_hw: tuple[int, int], ocbe: Ocbe = "mff+oce") -> Detector:
    torch.manual_seed(0)
    return Detector(model, size_hw, ocbe=ocbe)


def parameter_names(model: str, ocbe: Ocbe, part: str) -> set[str]:
    with torch.device("meta"):
        channels = Teacher(model, with_last_stage=ocbe == "none").level_channels
        restorer = Restorer(model, channels, ocbe)
    return {name for name, _ in restorer.get_submodule(part).named_parameters()}


@pytest.mark.parametrize("size_hw", [(64, 64), (64, 96)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("ocbe", OCBES)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_gives_maps_in_the_frames_size(model: str, ocbe: Ocbe, size_hw: tuple[int, int]) -> None:
    detector = built(model, size_hw, ocbe)
    anomaly_map, score = detector.predict(random_frames(2, size_hw))
    assert (anomaly_map.shape, anomaly_map.dtype) == ((2, 1, *size_hw), torch.float32)
    assert (score.shape, score.dtype) == ((2,), torch.float32)
    assert torch.equal(score, anomaly_map.amax(dim=(1, 2, 3)))
    assert -1e-5 < anomaly_map.min() <= anomaly_map.max() < 6.0  # three distances of at most 2


@pytest.mark.parametrize("model", LIGHT_MODELS)
@pytest.mark.parametrize("ocbe", OCBES)
def test_student_restores_the_teachers_shapes(model: str, ocbe: Ocbe) -> None:
    detector = built(model, (64, 96), ocbe).eval()
    features = detector.teacher(random_frames(1, (64, 96)))
    assert len(features) == (4 if ocbe == "none" else 3)
    restored = detector.restorer(features)
    assert [r.shape for r in restored] == [f.shape for f in features[:3]]
    assert [m.shape[2:] for m in detector.level_maps(features)] == [(64 // s, 96 // s) for s in STRIDES]


def test_the_residual_head_needs_the_two_coarser_levels() -> None:
    detector = Detector("edge-lite0", (64, 96), head="residual").eval()
    features = detector.teacher(random_frames(1, (64, 96)))
    assert detector.strides == (8, 16)
    assert [r.shape for r in detector.restorer(features)] == [f.shape for f in features[1:3]]
    assert [m.shape[2:] for m in detector.level_maps(features)] == [(64 // s, 96 // s) for s in (8, 16)]


@pytest.mark.parametrize("model", LIGHT_MODELS)
def test_predict_is_deterministic_and_leaves_nothing_behind(model: str) -> None:
    detector = built(model, (64, 64)).train()
    frames = random_frames(2, (64, 64))
    state = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    first, second = detector.predict(frames), detector.predict(frames)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not first[0].requires_grad
    assert not detector.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in detector.state_dict().items())


@pytest.mark.parametrize("model", LIGHT_MODELS)
def test_a_frames_result_does_not_depend_on_its_batch(model: str) -> None:
    detector = built(model, (64, 64))
    frames = random_frames(3, (64, 64))
    together = detector.predict(frames)[0]
    alone = torch.cat([detector.predict(frame[None])[0] for frame in frames])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_only_bottleneck_and_student_are_trained() -> None:
    detector = built("edge-lite0", (64, 64)).train()
    detector(random_frames(2, (64, 64)))[1].sum().backward()
    with_gradient = {name for name, p in detector.named_parameters() if p.grad is not None}
    assert with_gradient == {f"restorer.{name}" for name, _ in detector.restorer.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("ocbe", "fusion", "embedding"), [("mff+oce", True, True), ("oce", False, True), ("none", False, False)]
)
def test_ablation_drops_fusion_then_embedding(model: str, ocbe: Ocbe, fusion: bool, embedding: bool) -> None:
    names = parameter_names(model, ocbe, "bottleneck")
    fusion_part, embedding_part = ("conv1.", "bn_layer.") if model in RESNETS else ("fine.", "embed.")
    assert any(name.startswith(fusion_part) for name in names) is fusion
    assert any(name.startswith(embedding_part) for name in names) is embedding
    assert names <= parameter_names(model, "mff+oce", "bottleneck")
    assert parameter_names(model, ocbe, "student") == parameter_names(model, "mff+oce", "student")


def test_family_of_every_model() -> None:
    assert {model: family_of(model) for model in MODELS} == {
        "edge-lite0": "edge",
        "edge-lite1": "edge",
        "edge-lite2": "edge",
        "resnet18": "paper",
        "resnet50": "paper",
        "wide_resnet50_2": "paper",
    }
