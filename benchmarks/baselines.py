"""What reverse distillation is measured against, on the same teacher's features or on pixels; for benchmarks only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from rdedge_train.anomaly_map import AnomalyMap, cosine_distance
from rdedge_train.config import TrainConfig
from rdedge_train.efficientnet_lite import EfficientNetLite
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import ADAM_BETAS, batches, set_learning_rate
from rdedge_train.loss import distillation_loss
from rdedge_train.model import STRIDES
from rdedge_train.teachers import Teacher

MEMORY_VECTORS = 4096
SVM_OUTLIER_SHARE = 0.1  # nu: bounds the share of training parts left outside
_CHUNK = 16
_LATENT_CHANNELS = 8  # at stride 32: 512 numbers for 256x256
_STRIDE_16 = STRIDES.index(16)
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures uint8 (n, H, W, 3) RGB and their teacher features, in the same order."""

    frames_u8: NDArray[np.uint8]
    features: TeacherFeatures


@dataclass(frozen=True, slots=True)
class Judgement:
    """Scores (n,) and maps (n, H, W) float32 of n pictures; no maps where pictures are judged as a whole."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | None


Baseline = Callable[[Pictures, Pictures, TrainConfig], Judgement]


def pictures(teacher: Teacher, frames_u8: NDArray[np.uint8]) -> Pictures:
    """Pictures with their features kept in memory."""
    teacher = quick_teacher(teacher, frames_u8.shape[1:3], _CPU)
    return Pictures(frames_u8, TeacherFeatures(teacher, frames_u8, _CPU, budget_bytes=1 << 34))


def joined(answers: Iterator[tuple[Tensor, Tensor]]) -> Judgement:
    """Maps (n, 1, H, W) and scores (n,) of all chunks as one."""
    with torch.no_grad():
        chunks = [(m[:, 0].numpy(), s.numpy()) for m, s in answers]
    return Judgement(np.concatenate([s for _, s in chunks]), np.concatenate([m for m, _ in chunks]))


def conventional_distillation(train: Pictures, test: Pictures, config: TrainConfig) -> Judgement:
    """A student encoder of the teacher's own shape learns the teacher's features from the picture.

    Loss and map are those of the reverse student (config.loss, cosine distances summed); only what the student is fed
    and its shape differ (Wang et al., "Student-Teacher Feature Pyramid Matching", BMVC 2021).
    """
    torch.manual_seed(config.seed)
    student = EfficientNetLite(config.model.removeprefix("edge-"))
    scaled = Teacher(config.model)  # its normalisation only

    def restored(frames_u8: NDArray[np.uint8]) -> list[Tensor]:
        x_NCHW = torch.from_numpy(frames_u8).float().permute(0, 3, 1, 2).contiguous()
        features: list[Tensor] = student((x_NCHW - scaled.mean) / scaled.std)
        return features

    def loss(indices: NDArray[np.int64]) -> Tensor:
        targets = train.features.batch(indices)[: len(STRIDES)]
        return distillation_loss(targets, restored(train.frames_u8[indices]), config.loss).mean()

    _optimise(student, loss, len(train.features), config)
    anomaly_map = AnomalyMap(config.input.size_hw, STRIDES)

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for frames_u8, targets in zip(_chunks(test.frames_u8), test.features.in_order(), strict=True):
            pairs = zip(targets[: len(STRIDES)], restored(frames_u8), strict=True)
            yield anomaly_map([cosine_distance(t, s) for t, s in pairs])

    return joined(answers())


def nearest_neighbour(train: Pictures, test: Pictures, config: TrainConfig) -> Judgement:
    """Distance of every position's stride-16 feature to the nearest of those remembered from good parts.

    As PatchCore (Roth et al., CVPR 2022) features are averaged over 3x3 positions; unlike it they are standardised by
    channel, and the memory is a random draw instead of a coreset.
    """

    def vectors(batch: list[Tensor]) -> Tensor:
        pooled = avg_pool2d(batch[_STRIDE_16], 3, stride=1, padding=1, count_include_pad=False)
        return pooled.movedim(1, -1)  # (N, h, w, C)

    of_good = torch.cat([vectors(batch).flatten(0, 2) for batch in train.features.in_order()])
    mean, std = of_good.mean(0), of_good.std(0).clamp_min(1e-6)
    drawn = np.random.default_rng(config.seed).permutation(len(of_good))[:MEMORY_VECTORS]
    memory = (of_good[torch.from_numpy(drawn)] - mean) / std
    anomaly_map = AnomalyMap(config.input.size_hw, (16,))

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in test.features.in_order():
            rows = (vectors(batch) - mean) / std
            distance = torch.cdist(rows.flatten(0, 2), memory).amin(dim=1)
            yield anomaly_map([distance.view(rows.shape[:3]).unsqueeze(1)])

    return joined(answers())


def one_class_svm(train: Pictures, test: Pictures, config: TrainConfig) -> Judgement:
    """One-class SVM with a Gaussian kernel on each picture's features averaged over positions; draws nothing."""

    def rows(features: TeacherFeatures) -> NDArray[np.float64]:
        levels = (batch[: len(STRIDES)] for batch in features.in_order())
        return torch.cat([torch.cat([f.mean(dim=(2, 3)) for f in batch], dim=1) for batch in levels]).double().numpy()

    scaler = StandardScaler().fit(rows(train.features))
    machine = OneClassSVM(nu=SVM_OUTLIER_SHARE, gamma="scale").fit(scaler.transform(rows(train.features)))
    scores = -machine.decision_function(scaler.transform(rows(test.features)))
    return Judgement(scores.astype(np.float32), None)


def auto_encoder(train: Pictures, test: Pictures, config: TrainConfig) -> Judgement:
    """Squared error of a small convolutional auto-encoder on pixels, blurred as every map here is."""
    torch.manual_seed(config.seed)
    coder = _auto_encoder()

    def scaled(frames_u8: NDArray[np.uint8]) -> Tensor:
        return (torch.from_numpy(frames_u8).float() / 255.0).permute(0, 3, 1, 2).contiguous()

    def loss(indices: NDArray[np.int64]) -> Tensor:
        x_NCHW = scaled(train.frames_u8[indices])
        error: Tensor = (coder(x_NCHW) - x_NCHW).square().mean()
        return error

    _optimise(coder, loss, len(train.frames_u8), config)
    anomaly_map = AnomalyMap(config.input.size_hw, (1,))

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for frames_u8 in _chunks(test.frames_u8):
            x_NCHW = scaled(frames_u8)
            yield anomaly_map([(coder(x_NCHW) - x_NCHW).square().mean(dim=1, keepdim=True)])

    return joined(answers())


def _auto_encoder() -> nn.Sequential:
    """Five convolutions of stride 2 down to the latent channels, and five up-samplings back."""
    layers: list[nn.Module] = []
    channels = (3, 16, 32, 64, 64, _LATENT_CHANNELS)
    for c_in, c_out in pairwise(channels):
        layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    layers = layers[:-2]  # the latent is linear
    for c_in, c_out in pairwise(reversed(channels)):
        layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(c_in, c_out, 3, padding=1)]
        layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers[:-2], nn.Sigmoid())


def _optimise(module: nn.Module, loss: Callable[[NDArray[np.int64]], Tensor], n: int, config: TrainConfig) -> None:
    """The reverse student's own optimiser, batches and schedule; leaves the module in evaluation mode."""
    optimiser = torch.optim.Adam(module.parameters(), lr=config.learning_rate, betas=ADAM_BETAS)
    steps = math.ceil(n / config.batch_size)
    module.train()
    for epoch in range(1, config.epochs + 1):
        for step, indices in enumerate(batches(n, config.batch_size, config.seed, epoch)):
            set_learning_rate(optimiser, config, (epoch - 1) * steps + step, config.epochs * steps)
            value = loss(indices)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimiser.step()
    module.eval()


def _chunks(frames_u8: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """As TeacherFeatures.in_order cuts them."""
    for start in range(0, len(frames_u8), _CHUNK):
        yield frames_u8[start : start + _CHUNK]
