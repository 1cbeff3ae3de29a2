"""The paper's bottleneck (OCBE) and student decoder, weight for weight the official RD4AD network.

Source: Deng & Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022, section 3,
and github.com/hq-deng/RD4AD. Parameter names equal the official ones, so its checkpoints load (see official.py).
Shape suffixes: N batch, C channels, H and W the level's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Ocbe = Literal["mff+oce", "oce", "none"]


@dataclass(frozen=True, slots=True)
class ResNetShape:
    """What tells one ResNet from another: blocks per stage, channel expansion and 3x3 width."""

    blocks: tuple[int, int, int, int]
    expansion: int
    width_per_group: int
    embedding_blocks: int

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Output channels of teacher stages 1 to 4 (strides 4, 8, 16, 32)."""
        e = self.expansion
        return 64 * e, 128 * e, 256 * e, 512 * e


RESNETS = {
    "resnet18": ResNetShape((2, 2, 2, 2), 1, 64, 2),
    "resnet50": ResNetShape((3, 4, 6, 3), 4, 64, 3),
    "wide_resnet50_2": ResNetShape((3, 4, 6, 3), 4, 128, 3),
}


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def _deconv(c_in: int, c_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(c_in, c_out, kernel_size=2, stride=2, bias=False)


class ResidualBlock(nn.Module):
    """A residual block of either kind (basic or bottleneck) that keeps, halves or doubles the size.

    ``skip`` is the name the official checkpoints give the shortcut of the first block of a stage:
    ``downsample`` in the bottleneck, ``upsample`` in the decoder.
    """

    def __init__(self, c_in: int, planes: int, shape: ResNetShape, *, resize: Literal["keep", "halve", "double"]):
        super().__init__()
        c_out = planes * shape.expansion
        width = planes * shape.width_per_group // 64 if shape.expansion > 1 else planes
        self.has_three = shape.expansion > 1
        spatial_in = width if self.has_three else c_in
        if resize == "double":
            spatial: nn.Module = _deconv(spatial_in, width)
        else:
            spatial = _conv(spatial_in, width, 3, stride=2 if resize == "halve" else 1)
        if self.has_three:
            self.conv1: nn.Module = _conv(c_in, width, 1)
            self.conv2: nn.Module = spatial
            self.conv3, self.bn3 = _conv(width, c_out, 1), nn.BatchNorm2d(c_out)
        else:
            self.conv1, self.conv2 = spatial, _conv(width, c_out, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.skip_name = ""
        if resize == "halve":
            self.downsample = nn.Sequential(_conv(c_in, c_out, 1, stride=2), nn.BatchNorm2d(c_out))
            self.skip_name = "downsample"
        elif resize == "double":
            self.upsample = nn.Sequential(_deconv(c_in, c_out), nn.BatchNorm2d(c_out))
            self.skip_name = "upsample"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        if self.has_three:
            y = self.bn3(self.conv3(self.relu(y)))
        skip: Tensor = getattr(self, self.skip_name)(x_NCHW) if self.skip_name else x_NCHW
        out: Tensor = self.relu(y + skip)
        return out


def _initialise(module: nn.Module) -> None:
    """He initialisation as in the official code (fan out, ReLU); batch norm starts as identity."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


class Bottleneck(nn.Module):
    """One-class bottleneck embedding: multi-scale feature fusion (MFF), then one-class embedding (OCE).

    ``ocbe`` is the paper's ablation: ``mff+oce`` (the method), ``oce`` (only the deepest level is embedded) or
    ``none`` (the teacher's own last stage is the embedding, nothing is learned here).
    Official checkpoints also carry ``conv4``/``bn4``, which no forward pass ever runs; they are not built.
    """

    def __init__(self, shape: ResNetShape, ocbe: Ocbe):
        super().__init__()
        self.ocbe = ocbe
        if ocbe == "none":
            return
        c1, c2, c3, _ = shape.level_channels
        self.relu = nn.ReLU()
        # In the official order, so that its optimiser states and seeded initialisation line up too.
        blocks = [ResidualBlock(c3 * (3 if ocbe == "mff+oce" else 1), 512, shape, resize="halve")]
        blocks += [
            ResidualBlock(512 * shape.expansion, 512, shape, resize="keep") for _ in range(1, shape.embedding_blocks)
        ]
        self.bn_layer = nn.Sequential(*blocks)
        if ocbe == "mff+oce":
            self.conv1, self.bn1 = _conv(c1, c2, 3, 2), nn.BatchNorm2d(c2)
            self.conv2, self.bn2 = _conv(c2, c3, 3, 2), nn.BatchNorm2d(c3)
            self.conv3, self.bn3 = _conv(c2, c3, 3, 2), nn.BatchNorm2d(c3)
        _initialise(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Teacher features, fine to coarse, to the embedding (N, 512*expansion, H/32, W/32)."""
        if self.ocbe == "none":
            return features[3]
        fused = features[2]
        if self.ocbe == "mff+oce":
            fine = self.relu(self.bn1(self.conv1(features[0])))
            fine = self.relu(self.bn2(self.conv2(fine)))
            middle = self.relu(self.bn3(self.conv3(features[1])))
            fused = torch.cat([fine, middle, features[2]], dim=1)
        out: Tensor = self.bn_layer(fused)
        return out


class Student(nn.Module):
    """Student decoder: a mirrored ResNet that restores the teacher's three levels from the embedding."""

    def __init__(self, shape: ResNetShape):
        super().__init__()
        self.layer1 = self._stage(512 * shape.expansion, 256, shape.blocks[0], shape)
        self.layer2 = self._stage(256 * shape.expansion, 128, shape.blocks[1], shape)
        self.layer3 = self._stage(128 * shape.expansion, 64, shape.blocks[2], shape)
        _initialise(self)

    @staticmethod
    def _stage(c_in: int, planes: int, blocks: int, shape: ResNetShape) -> nn.Sequential:
        first = ResidualBlock(c_in, planes, shape, resize="double")
        rest = [ResidualBlock(planes * shape.expansion, planes, shape, resize="keep") for _ in range(1, blocks)]
        return nn.Sequential(first, *rest)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """The embedding to restored features, fine to coarse, shaped like the teacher's."""
        coarse = self.layer1(embedding)
        middle = self.layer2(coarse)
        return [self.layer3(middle), middle, coarse]
