"""The whole detector: teacher, bottleneck, student and anomaly map, as one module that takes camera frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rdedge_train.anomaly_map import AnomalyMap, PositionHead, cosine_distance
from rdedge_train.edge import EdgeBottleneck, EdgeStudent
from rdedge_train.paper import RESNETS, Bottleneck, Ocbe, Student
from rdedge_train.residual_head import ResidualHead
from rdedge_train.teachers import EDGE_SIZES, Teacher

Family = Literal["edge", "paper"]
Head = Literal["plain", "position", "residual"]
MODELS: tuple[str, ...] = (*(f"edge-{size}" for size in EDGE_SIZES), *RESNETS)
STRIDES = (4, 8, 16)
_RESIDUAL_LEVELS = 2  # of the residual head, the coarsest first: stride 4 adds more noise than it finds
SIZE_MULTIPLE_PX = 32  # the embedding's stride: every level must divide evenly


def family_of(model: str) -> Family:
    """``edge`` or ``paper``."""
    return "paper" if model in RESNETS else "edge"


class Restorer(nn.Module):
    """Everything that is trained: the bottleneck and the student."""

    def __init__(self, model: str, level_channels: tuple[int, ...], ocbe: Ocbe, levels: int = len(STRIDES)):
        """``levels``: how many an edge student restores, the coarsest first."""
        super().__init__()
        if model in RESNETS:
            self.bottleneck: nn.Module = Bottleneck(RESNETS[model], ocbe)
            self.student: nn.Module = Student(RESNETS[model])
        else:
            bottleneck = EdgeBottleneck(level_channels, ocbe)
            self.bottleneck = bottleneck
            self.student = EdgeStudent(bottleneck.out_channels, level_channels, levels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Teacher features (3 levels, or 4 where OCBE is ``none``) -> restored levels, fine to coarse."""
        restored: list[Tensor] = self.student(self.bottleneck(features))
        return restored


class Detector(nn.Module):
    """Frames in, anomaly map and score out: exactly what is exported as the bundle's graph."""

    def __init__(self, model: str, size_hw: tuple[int, int], *, ocbe: Ocbe = "mff+oce", head: Head = "plain"):
        """``head``: ``plain`` sums the distances as the paper does, ``position`` standardises them first, ``residual``
        judges the residual vectors of whitened features (see residual_head.py; edge models only).
        """
        super().__init__()
        self.teacher = Teacher(model, with_last_stage=ocbe == "none")
        levels = _RESIDUAL_LEVELS if head == "residual" else len(STRIDES)
        self.strides = STRIDES[-levels:]
        self.restorer = Restorer(model, self.teacher.level_channels, ocbe, levels)
        self.head: PositionHead | ResidualHead | None = None
        if head == "position":
            self.head = PositionHead(size_hw, STRIDES)
        elif head == "residual":
            grids_hw = [(size_hw[0] // stride, size_hw[1] // stride) for stride in self.strides]
            self.head = ResidualHead(self.teacher.level_channels[len(STRIDES) - levels : len(STRIDES)], grids_hw)
        self.anomaly_map = AnomalyMap(size_hw, self.strides)

    def levels(self, features: list[Tensor]) -> list[Tensor]:
        """Those of the teacher's features that are restored and judged, fine to coarse."""
        return features[len(STRIDES) - len(self.strides) : len(STRIDES)]

    def targets(self, features: list[Tensor]) -> list[Tensor]:
        """What the student has to restore of the teacher's features, fine to coarse."""
        levels = self.levels(features)
        return self.head.targets(levels) if isinstance(self.head, ResidualHead) else levels

    def residuals(self, features: list[Tensor]) -> list[Tensor]:
        """What it did not restore: (N, C, h, w) a level, fine to coarse."""
        return [t - s for t, s in zip(self.targets(features), self.restorer(features), strict=True)]

    def distances(self, features: list[Tensor]) -> list[Tensor]:
        """Cosine distance maps (N, 1, h, w) of the levels, fine to coarse, before any head."""
        return [cosine_distance(t, s) for t, s in zip(self.targets(features), self.restorer(features), strict=True)]

    def level_maps(self, features: list[Tensor]) -> list[Tensor]:
        """What is summed into the anomaly map: (N, 1, h, w) a level, fine to coarse."""
        if isinstance(self.head, ResidualHead):
            maps: list[Tensor] = self.head(self.residuals(features))
        else:
            maps = self.distances(features)
            if self.head is not None:
                maps = self.head(maps)
        return maps

    def judge_features(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Teacher features -> anomaly map (N, 1, H, W) and score (N,)."""
        result: tuple[Tensor, Tensor] = self.anomaly_map(self.level_maps(features))
        return result

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed frames, uint8 (N, H, W, 3) RGB -> anomaly map float32 (N, 1, H, W) and score float32 (N,)."""
        return self.judge_features(self.teacher(frame))

    @torch.no_grad()
    def predict(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` in evaluation mode and without gradients."""
        self.eval()
        result: tuple[Tensor, Tensor] = self(frame)
        return result
