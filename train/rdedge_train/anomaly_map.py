"""From teacher and student features to the anomaly map: one definition for training, evaluation and the graph."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BLUR_SIGMA_PX = 4.0
BLUR_TRUNCATE = 4.0  # scipy.ndimage's default: radius = int(4 * sigma + 0.5)
_EPSILON = 1e-8


def cosine_distance(teacher_NCHW: Tensor, student_NCHW: Tensor) -> Tensor:
    """1 - cosine similarity over channels at each position: (N, C, H, W) twice -> (N, 1, H, W), in 0..2.

    Written out in operations that every TensorRT and ONNX Runtime knows; each norm is clamped on its own at 1e-8,
    as ``torch.nn.functional.cosine_similarity`` does.
    """
    dot = (teacher_NCHW * student_NCHW).sum(dim=1, keepdim=True)
    # Clamped before the root: the gradient of a root at zero is infinite, and a dead position would make it NaN.
    norm_teacher = (teacher_NCHW * teacher_NCHW).sum(dim=1, keepdim=True).clamp_min(_EPSILON**2).sqrt()
    norm_student = (student_NCHW * student_NCHW).sum(dim=1, keepdim=True).clamp_min(_EPSILON**2).sqrt()
    return 1.0 - dot / (norm_teacher * norm_student)


def upsample_matrix(n_in: int, n_out: int) -> NDArray[np.float64]:
    """(n_out, n_in) matrix of one-dimensional bilinear up-sampling with ``align_corners=True``."""
    position = np.zeros(n_out) if n_out == 1 else np.arange(n_out) * ((n_in - 1) / (n_out - 1))
    low = np.clip(np.floor(position).astype(int), 0, max(n_in - 2, 0))
    fraction = position - low
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    matrix[rows, low] = 1.0 - fraction
    if n_in > 1:
        matrix[rows, low + 1] += fraction
    return matrix


def blur_matrix(n: int, sigma_px: float = BLUR_SIGMA_PX) -> NDArray[np.float64]:
    """(n, n) matrix of ``scipy.ndimage.gaussian_filter1d`` with its default border (``reflect``: the edge repeats)."""
    radius = int(BLUR_TRUNCATE * sigma_px + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    rows = np.arange(n)
    for offset, weight in zip(offsets, weights, strict=True):
        mirrored = (rows + offset) % (2 * n)
        columns = np.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
        np.add.at(matrix, (rows, columns), weight)
    return matrix


@lru_cache(maxsize=32)
def _folded(n_in: int, n_out: int) -> NDArray[np.float64]:
    return np.asarray(blur_matrix(n_out) @ upsample_matrix(n_in, n_out))


class AnomalyMap(nn.Module):
    """Sums the levels' distance maps at full size and blurs the sum; both steps folded into two products a level.

    Bilinear up-sampling and the Gaussian are linear and separable, so level n contributes P_h m_n P_w^T with constant
    P = blur @ upsample. Equal to resize + scipy.ndimage.gaussian_filter(sigma=4) up to rounding.
    """

    def __init__(self, size_hw: tuple[int, int], strides: tuple[int, ...]):
        super().__init__()
        self.size_hw = size_hw
        self.levels = len(strides)
        for i, stride in enumerate(strides):
            rows = torch.from_numpy(_folded(size_hw[0] // stride, size_hw[0]))
            columns = torch.from_numpy(_folded(size_hw[1] // stride, size_hw[1])).T.contiguous()
            self.register_buffer(f"rows{i}", rows.float(), persistent=False)
            self.register_buffer(f"columns{i}", columns.float(), persistent=False)

    def forward(self, level_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Level maps (N, 1, h, w), fine to coarse -> anomaly map (N, 1, H, W) and score (N,), its maximum."""
        total: Tensor | None = None
        for i, level_map in enumerate(level_maps):
            part = getattr(self, f"rows{i}") @ level_map @ getattr(self, f"columns{i}")
            total = part if total is None else total + part
        assert total is not None
        return total, total.amax(dim=(1, 2, 3))


class PositionHead(nn.Module):
    """Standardises each level's distance at each position by what good parts show there.

    What is normal depends on where one looks: edges and glints are restored worse than plain surface on every part.
    Distances become deviations, (distance - mean) / (std + floor), and their sum over levels a mean, so that the map
    counts by how many standard deviations a place is off. Identity until fitted.
    """

    _STD_FLOOR = 0.3  # of the level's mean deviation: keeps quiet positions from shouting at rounding noise

    def __init__(self, size_hw: tuple[int, int], strides: tuple[int, ...]):
        super().__init__()
        self.levels = len(strides)
        for i, stride in enumerate(strides):
            shape = (1, 1, size_hw[0] // stride, size_hw[1] // stride)
            self.register_buffer(f"mean{i}", torch.zeros(shape))
            self.register_buffer(f"scale{i}", torch.ones(shape))

    def fit(self, level_maps: list[Tensor]) -> None:
        """Level maps (n, 1, h, w) of n good parts, fine to coarse."""
        for i, level_map in enumerate(level_maps):
            mean = level_map.mean(dim=0, keepdim=True)
            std = (level_map - mean).square().mean(dim=0, keepdim=True).sqrt()
            getattr(self, f"mean{i}").copy_(mean)
            floored = (std + self._STD_FLOOR * std.mean()).clamp_min(1e-6)
            getattr(self, f"scale{i}").copy_(1.0 / (self.levels * floored))

    def forward(self, level_maps: list[Tensor]) -> list[Tensor]:
        """Level maps (N, 1, h, w) -> the same shapes, in deviations."""
        return [(m - getattr(self, f"mean{i}")) * getattr(self, f"scale{i}") for i, m in enumerate(level_maps)]
