"""The whole detector: teacher, bottleneck, student and anomaly map, as one module that takes camera frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rdedge_train.anomaly_map import AnomalyMap, PositionHead, cosine_distance
from rdedge_train.edge import EdgeBottleneck, EdgeStudent
from rdedge_train.paper import RESNETS, Bottleneck, Ocbe, Student
from rdedge_train.teachers import EDGE_SIZES, Teacher

Family = Literal["edge", "paper"]
Head = Literal["plain", "position"]
MODELS: tuple[str, ...] = (*(f"edge-{size}" for size in EDGE_SIZES), *RESNETS)
STRIDES = (4, 8, 16)
SIZE_MULTIPLE_PX = 32  # the embedding's stride: every level must divide evenly


def family_of(model: str) -> Family:
    """``edge`` or ``paper``."""
    return "paper" if model in RESNETS else "edge"


class Restorer(nn.Module):
    """Everything that is trained: the bottleneck and the student."""

    def __init__(self, model: str, level_channels: tuple[int, ...], ocbe: Ocbe):
        super().__init__()
        if model in RESNETS:
            self.bottleneck: nn.Module = Bottleneck(RESNETS[model], ocbe)
            self.student: nn.Module = Student(RESNETS[model])
        else:
            bottleneck = EdgeBottleneck(level_channels, ocbe)
            self.bottleneck = bottleneck
            self.student = EdgeStudent(bottleneck.out_channels, level_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Teacher features (3 levels, or 4 where OCBE is ``none``) -> 3 restored levels, fine to coarse."""
        restored: list[Tensor] = self.student(self.bottleneck(features))
        return restored


class Detector(nn.Module):
    """Frames in, anomaly map and score out: exactly what is exported as the bundle's graph."""

    def __init__(self, model: str, size_hw: tuple[int, int], *, ocbe: Ocbe = "mff+oce", head: Head = "plain"):
        """``head``: ``plain`` sums the distances as the paper does, ``position`` standardises them first."""
        super().__init__()
        self.teacher = Teacher(model, with_last_stage=ocbe == "none")
        self.restorer = Restorer(model, self.teacher.level_channels, ocbe)
        self.head = PositionHead(size_hw, STRIDES) if head == "position" else None
        self.anomaly_map = AnomalyMap(size_hw, STRIDES)

    def level_maps(self, features: list[Tensor]) -> list[Tensor]:
        """Cosine distance maps (N, 1, h, w) of the three levels, fine to coarse."""
        restored = self.restorer(features)
        return [cosine_distance(t, s) for t, s in zip(features[:3], restored, strict=True)]

    def judge_features(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Teacher features -> anomaly map (N, 1, H, W) and score (N,)."""
        level_maps = self.level_maps(features)
        if self.head is not None:
            level_maps = self.head(level_maps)
        result: tuple[Tensor, Tensor] = self.anomaly_map(level_maps)
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
