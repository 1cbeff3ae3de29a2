"""Our network against numbers made by the unmodified official RD4AD code, on weights rebuilt from their names.

Source of the numbers and of the fill rule: github.com/hq-deng/RD4AD, commit 6554076; see tests/data/rd4ad_golden.
"""

from __future__ import annotations

import copy
import gc
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdedge_train.anomaly_map import upsample_matrix
from rdedge_train.loss import distillation_loss
from rdedge_train.model import Detector

GOLDEN = Path(__file__).parents[1] / "data" / "rd4ad_golden"
VARIANTS = ("resnet18", "resnet50", "wide_resnet50_2")
SIZE_PX = 256
DTYPES = (torch.float32, torch.float64)
NEVER_RUN = ["conv4.weight", *(f"bn4.{k}" for k in ("weight", "bias", "running_mean", "running_var"))]
NEVER_RUN += ["bn4.num_batches_tracked"]

# Tolerances for (float32, float64), from the reference's own float32 noise.
MAP_ABS = (1e-5, 2e-6)
FEATURE_PER_STD = 1e-4
LOSS_ABS = (5e-5, 1e-9)
LOSS_AFTER_ADAM_ABS = (5e-3, 1e-5)
GRADIENT_REL = {"resnet18": (1e-3, 1e-6), "resnet50": (5e-2, 1e-6), "wide_resnet50_2": (5e-2, 1e-6)}
BUFFER_REL = 1e-5


@dataclass(frozen=True)
class Golden:
    """One variant: the official numbers, and our detector with the official weights."""

    variant: str
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    detector: Detector
    images: Tensor  # (2, 3, 256, 256) float32
    skipped: dict[str, list[str]]


@dataclass(frozen=True)
class Forward:
    """What one image gives, batch dimension dropped, in float64."""

    teacher: list[NDArray[np.float64]]
    bottleneck: NDArray[np.float64]
    decoder: list[NDArray[np.float64]]
    level_maps: list[NDArray[np.float64]]
    unfiltered: NDArray[np.float64]
    filtered: NDArray[np.float64]
    score: float


@dataclass(frozen=True)
class Step:
    """One training step from the filled weights: numbers only, so that the copy of the network can be freed."""

    loss: float
    loss_terms: list[float]
    gradient_l2: dict[str, float]
    buffer_l2: dict[str, float]
    loss_after_adam: float


def filled(module: str, key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The reference's weight: bits from the crc32 of the name, scale from the kind of tensor."""
    if key.endswith("num_batches_tracked"):
        return np.zeros((), dtype=np.int64)
    uniform = np.random.RandomState(zlib.crc32(f"{module}.{key}".encode("ascii"))).random_sample(shape)
    signed = 2.0 * uniform - 1.0
    if len(shape) == 4 and shape[2:] == (2, 2):
        value = np.sqrt(6 / shape[0]) * signed
    elif len(shape) == 4:
        value = np.sqrt(6 / (shape[1] * shape[2] * shape[3])) * signed
    elif key.endswith("running_var"):
        value = 0.5 + uniform
    elif key.endswith(("bias", "running_mean")):
        value = 0.2 * signed
    else:
        value = 0.4 + 0.7 * uniform
    return np.asarray(value, dtype=np.float32)


def crc32_hex(array: NDArray[Any]) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def fill(module: nn.Module, prefix: str, keys: list[list[Any]]) -> list[str]:
    """Fill ``module`` by the rule, check every tensor's crc32, and return the official keys it does not have."""
    state = module.state_dict()
    skipped = []
    for key, shape, dtype, crc32 in keys:
        if key not in state:
            skipped.append(key)
            continue
        value = filled(prefix, key, tuple(shape))
        assert (str(value.dtype), crc32_hex(value)) == (dtype, crc32), f"the fill of {prefix}.{key} is not the official"
        state[key] = torch.from_numpy(value)
    module.load_state_dict(state)
    assert set(state) <= {key for key, *_ in keys}, f"{prefix} has tensors the official network does not have"
    return skipped


def made_image(seed: int) -> NDArray[np.float32]:
    random = np.random.RandomState(seed)
    coarse = random.random_sample((3, 16, 16))
    fine = random.random_sample((3, SIZE_PX, SIZE_PX))
    coarse = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return np.asarray(4 * coarse - 2 + 0.5 * (2 * fine - 1), dtype=np.float32)


@pytest.fixture(scope="module", params=VARIANTS)
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    facts = json.loads((GOLDEN / f"{request.param}.json").read_text())
    with np.load(GOLDEN / f"{request.param}.npz") as stored:
        arrays = dict(stored)
    detector = Detector(request.param, (SIZE_PX, SIZE_PX)).eval()
    restorer = detector.restorer
    parts = {"teacher": detector.teacher.encoder, "bn": restorer.bottleneck, "decoder": restorer.student}
    skipped = {name: fill(part, name, facts["keys"][name]) for name, part in parts.items()}
    images = torch.from_numpy(np.stack([made_image(seed) for seed in facts["input"]["seeds"]]))
    yield Golden(request.param, facts, arrays, detector, images, skipped)
    del detector, restorer, parts
    gc.collect()


@torch.no_grad()
def run_image(detector: Detector, x_NCHW: Tensor) -> Forward:
    features = detector.teacher.encode(x_NCHW)
    embedding = detector.restorer.bottleneck(features)
    restored = detector.restorer.student(embedding)
    level_maps = detector.level_maps(features)
    filtered, score = detector.judge_features(features)
    maps = [m[0, 0].double().numpy() for m in level_maps]
    upsample = [upsample_matrix(m.shape[0], SIZE_PX) for m in maps]
    return Forward(
        teacher=[f[0].double().numpy() for f in features],
        bottleneck=embedding[0].double().numpy(),
        decoder=[f[0].double().numpy() for f in restored],
        level_maps=maps,
        unfiltered=np.sum([u @ m @ u.T for u, m in zip(upsample, maps, strict=True)], axis=0),
        filtered=filtered[0, 0].double().numpy(),
        score=float(score[0]),
    )


@pytest.fixture(scope="module", params=range(2), ids=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> int:
    """Index into DTYPES and into every pair of tolerances."""
    return int(request.param)


@pytest.fixture(scope="module")
def forwards(golden: Golden, precision: int) -> list[Forward]:
    detector = copy.deepcopy(golden.detector).to(DTYPES[precision])
    return [run_image(detector, x[None].to(DTYPES[precision])) for x in golden.images]


def train_step(detector: Detector, images: Tensor) -> Step:
    """One step on copies, in the dtype of ``images``; nothing of the copies outlives the call."""
    with torch.no_grad():
        features = copy.deepcopy(detector.teacher).to(images.dtype).encode(images)
    restorer = copy.deepcopy(detector.restorer).to(images.dtype).train()
    adam = torch.optim.Adam(restorer.parameters(), lr=0.005, betas=(0.5, 0.999))
    restored = restorer(features)
    loss = distillation_loss(features, restored, "flattened").mean()
    loss.backward()
    # Copied before the next forward pass moves the buffers again.
    buffer_l2 = {official_name(k): l2(v) for k, v in restorer.named_buffers()}
    gradient_l2 = {official_name(k): l2(p.grad) for k, p in restorer.named_parameters() if p.grad is not None}
    with torch.no_grad():
        terms = [distillation_loss([t], [s], "flattened").mean() for t, s in zip(features, restored, strict=True)]
        adam.step()
        loss_after_adam = distillation_loss(features, restorer(features), "flattened").mean()
    return Step(loss.item(), [t.item() for t in terms], gradient_l2, buffer_l2, loss_after_adam.item())


@pytest.fixture(scope="module")
def step(golden: Golden, precision: int) -> Iterator[Step]:
    yield train_step(golden.detector, golden.images.to(DTYPES[precision]))
    gc.collect()


def official_name(name: str) -> str:
    return name.replace("bottleneck.", "bn.", 1).replace("student.", "decoder.", 1)


def l2(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def test_input_is_the_official_one(golden: Golden) -> None:
    assert [crc32_hex(x) for x in golden.images.numpy()] == golden.facts["input"]["crc32_float32_le"]


def test_only_the_tensors_no_result_depends_on_are_not_built(golden: Golden) -> None:
    assert golden.skipped["bn"] == NEVER_RUN
    assert golden.skipped["decoder"] == []
    assert all(key.startswith(("layer4.", "fc.")) for key in golden.skipped["teacher"])
    assert golden.skipped == golden.facts["unused_keys"]


@pytest.mark.parametrize("image", range(2))
def test_features(golden: Golden, forwards: list[Forward], image: int) -> None:
    ours, facts = forwards[image], golden.facts["images"][image]
    for name in ("teacher", "decoder"):
        for level, feature in enumerate(getattr(ours, name)):
            check_feature(feature, golden.arrays[f"{name}{level + 1}_image{image}"], facts[name][level])
    check_feature(ours.bottleneck, golden.arrays[f"bottleneck_image{image}"], facts["bottleneck"])


def check_feature(feature: NDArray[np.float64], sample: NDArray[np.float32], facts: dict[str, Any]) -> None:
    """A strided sample element by element, and the whole tensor through its statistics."""
    c, h, w = (full // part for full, part in zip(feature.shape, sample.shape, strict=True))
    tolerance = FEATURE_PER_STD * facts["std"]
    np.testing.assert_allclose(feature[::c, ::h, ::w], sample, rtol=0, atol=tolerance)
    assert list(feature.shape) == facts["shape"]
    whole = {"mean": feature.mean(), "std": feature.std(), "min": feature.min(), "max": feature.max()}
    assert whole == pytest.approx({name: facts[name] for name in whole}, abs=tolerance)


@pytest.mark.parametrize("image", range(2))
def test_maps_and_score(golden: Golden, forwards: list[Forward], precision: int, image: int) -> None:
    ours, stored = forwards[image], golden.arrays
    suffix, every = ("image0", 1) if image == 0 else ("image1_every8", 8)
    pairs = [(m, stored[f"level{i}_image{image}"]) for i, m in enumerate(ours.level_maps, start=1)]
    pairs += [(ours.unfiltered[::every, ::every], stored[f"amap_{suffix}"])]
    pairs += [(ours.filtered[::every, ::every], stored[f"amap_filtered_{suffix}"])]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=MAP_ABS[precision])
    assert ours.score == pytest.approx(float(stored[f"score_image{image}"]), abs=MAP_ABS[precision])
    assert ours.score == ours.filtered.max()


def test_loss(golden: Golden, step: Step, precision: int) -> None:
    expected = golden.facts["train_step"]
    assert step.loss == pytest.approx(expected["loss_float64" if precision else "loss"], abs=LOSS_ABS[precision])
    assert step.loss_terms == pytest.approx(expected["loss_terms_level_1_2_3"], abs=LOSS_ABS[0])


def test_gradient_norms(golden: Golden, step: Step, precision: int) -> None:
    expected = golden.facts["train_step"]["gradient_l2_all_float32_float64"]
    used = {name: norms[1] for name, norms in expected.items() if norms is not None}  # float64: without its noise
    assert set(expected) - set(used) == {f"bn.{k}" for k in ("conv4.weight", "bn4.weight", "bn4.bias")}
    assert step.gradient_l2 == pytest.approx(used, rel=GRADIENT_REL[golden.variant][precision])


def test_running_buffers(golden: Golden, step: Step) -> None:
    expected = golden.facts["train_step"]["running_buffers_after_forward_l2"]
    built = {name: value for name, value in expected.items() if not name.startswith("bn.bn4.")}
    assert len(built) == len(expected) - 1
    assert {name: step.buffer_l2[name] for name in built} == pytest.approx(built, rel=BUFFER_REL)


def test_loss_after_one_adam_step(golden: Golden, step: Step, precision: int) -> None:
    expected = golden.facts["train_step"]["loss_after_one_adam_step_float64"]
    assert step.loss_after_adam == pytest.approx(expected, abs=LOSS_AFTER_ADAM_ABS[precision])
