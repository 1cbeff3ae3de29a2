"""The edge family's light bottleneck and student: inverted residual blocks with ReLU6, for small boards and INT8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rdedge_train.efficientnet_lite import MBConv
from rdedge_train.paper import Ocbe

_FUSED_CHANNELS = 64  # per level, before concatenation
_EMBEDDING_CHANNELS = 160
_STUDENT_CHANNELS = (24, 48, 96)  # fine to coarse
_EXPANSION = 3


def _conv_bn_relu(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


class EdgeBottleneck(nn.Module):
    """MFF and OCE in the light: strides 4, 8, 16 are brought to stride 16, concatenated and condensed to stride 32."""

    def __init__(self, level_channels: tuple[int, ...], ocbe: Ocbe):
        super().__init__()
        self.ocbe = ocbe
        if ocbe == "none":
            self.out_channels = level_channels[3]
            return
        c1, c2, c3 = level_channels[:3]
        c = _FUSED_CHANNELS
        if ocbe == "mff+oce":
            self.fine = nn.Sequential(_conv_bn_relu(c1, c // 2, 3, 2), _conv_bn_relu(c // 2, c, 3, 2))
            self.middle = _conv_bn_relu(c2, c, 3, 2)
        self.coarse = _conv_bn_relu(c3, c, 1, 1)
        c_fused = c * 3 if ocbe == "mff+oce" else c
        self.squeeze = _conv_bn_relu(c_fused, _EMBEDDING_CHANNELS, 1, 1)
        self.embed = nn.Sequential(
            MBConv(_EMBEDDING_CHANNELS, _EMBEDDING_CHANNELS, 5, 2, _EXPANSION),
            MBConv(_EMBEDDING_CHANNELS, _EMBEDDING_CHANNELS, 5, 1, _EXPANSION),
        )
        self.out_channels = _EMBEDDING_CHANNELS

    def forward(self, features: list[Tensor]) -> Tensor:
        """Teacher features, fine to coarse, to the embedding (N, C, H/32, W/32)."""
        if self.ocbe == "none":
            return features[3]
        fused = self.coarse(features[2])
        if self.ocbe == "mff+oce":
            fused = torch.cat([self.fine(features[0]), self.middle(features[1]), fused], dim=1)
        out: Tensor = self.embed(self.squeeze(fused))
        return out


class EdgeStudent(nn.Module):
    """Restores strides 16, 8 and 4 in turn; up-sampling by repetition, which every INT8 engine and DLA has."""

    def __init__(self, c_embedding: int, level_channels: tuple[int, ...], levels: int):
        """``levels``: how many are restored, the coarsest first."""
        super().__init__()
        stages, heads = [], []
        c_in = c_embedding
        by_level = list(zip(reversed(_STUDENT_CHANNELS), reversed(level_channels[:3]), strict=True))
        for c, c_teacher in by_level[:levels]:
            stages.append(
                nn.Sequential(
                    # Fewer channels before up-sampling, not after: a quarter of the work.
                    _conv_bn_relu(c_in, c, 1, 1),
                    nn.Upsample(scale_factor=2.0, mode="nearest"),
                    MBConv(c, c, 5, 1, _EXPANSION),
                    MBConv(c, c, 3, 1, _EXPANSION),
                )
            )
            heads.append(nn.Conv2d(c, c_teacher, 1))
            c_in = c
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """The embedding to restored features, fine to coarse, shaped like the teacher's."""
        x = embedding
        restored = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            restored.append(head(x))
        return restored[::-1]
