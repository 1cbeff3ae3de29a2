"""Judges what the student could not restore as a vector, by how such vectors vary on good parts at that position.

A cosine distance weighs all channels alike and all positions alike. Good parts do neither: some directions of channel
space hardly ever move, and how the rest move depends on where one looks. So teacher features are whitened before they
are distilled, and the residual is judged by its Mahalanobis distance at each position, in the few directions in which
good parts vary least (Rippel et al., "Modeling the distribution of normal data in pre-trained deep features for
anomaly detection", ICPR 2020, found these to tell most).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

KEPT_DIRECTIONS = 20
POOLED_SHARE = 0.5  # of the covariance: the mean over all positions; the rest is the position's own
_VARIANCE_FLOOR = 1e-3  # of the mean variance, so that no direction is all that counts
_LEAST_VARIANCE = 1e-6  # FP16 must hold 1 / deviation, also of what never varies


class ChannelWhitening(nn.Module):
    """One level's features with unit variance in every direction of channel space (ZCA). Identity until fitted."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("matrix", torch.eye(channels).view(channels, channels, 1, 1))

    def fit(self, features: Iterable[Tensor]) -> None:
        """Features (n, C, h, w) of good parts, chunk by chunk."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for chunk in features:
            rows = chunk.detach().double().movedim(1, -1).flatten(0, 2)
            count, total, products = count + len(rows), total.to(rows) + rows.sum(0), products.to(rows) + rows.T @ rows
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        scale = (variances + _VARIANCE_FLOOR * variances.mean()).clamp_min(_LEAST_VARIANCE).rsqrt()
        self.mean.copy_(mean.view(self.mean.shape))
        self.matrix.copy_(((directions * scale) @ directions.T).view(self.matrix.shape))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        return conv2d(x_NCHW - self.mean, self.matrix)


class ResidualDistance(nn.Module):
    """One level's residual vectors to distances: about 1 where a part is good. Zero until fitted."""

    mean: Tensor
    directions: Tensor

    def __init__(self, channels: int, grid_hw: tuple[int, int]):
        super().__init__()
        kept = min(KEPT_DIRECTIONS, channels)
        self.register_buffer("mean", torch.zeros(1, channels, *grid_hw))
        # Half precision: these are most of the bundle's bytes, and rounding a direction moves a distance by 1e-3.
        self.register_buffer("directions", torch.zeros(grid_hw[0] * grid_hw[1], channels, kept, dtype=torch.float16))

    def fit(self, residuals: Iterable[Tensor], pooled_share: float = POOLED_SHARE) -> None:
        """Residuals (n, C, h, w) of good parts, chunk by chunk. ``pooled_share``: see POOLED_SHARE."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for chunk in residuals:
            by_position = self._by_position(chunk.detach().double())
            count += len(chunk)
            total = total.to(by_position) + by_position.sum(1)
            products = products.to(by_position) + by_position.mT @ by_position
        mean = total / count
        own = products / count - mean.unsqueeze(2) * mean.unsqueeze(1)
        covariance = (1.0 - pooled_share) * own + pooled_share * own.mean(0, keepdim=True)
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        floored = variances + _VARIANCE_FLOOR * variances.mean(1, keepdim=True)
        kept = self.directions.shape[2]
        # The square root of the kept number makes the distance about 1 on good parts.
        scale = (floored[:, :kept] * kept).clamp_min(_LEAST_VARIANCE).rsqrt()
        self.mean.copy_(mean.T.reshape(self.mean.shape))
        self.directions.copy_(directions[:, :, :kept] * scale.unsqueeze(1))

    def forward(self, residual_NCHW: Tensor) -> Tensor:
        """(N, C, h, w) -> distances (N, 1, h, w)."""
        n, _, height, width = residual_NCHW.shape
        projected = self._by_position(residual_NCHW - self.mean) @ self.directions.float()
        distance = (projected * projected).sum(dim=2).sqrt()
        return distance.permute(1, 0).reshape(n, 1, height, width)

    @staticmethod
    def _by_position(x_NCHW: Tensor) -> Tensor:
        """(N, C, h, w) -> (h * w, N, C)."""
        n, channels, height, width = x_NCHW.shape
        return x_NCHW.permute(2, 3, 0, 1).reshape(height * width, n, channels)


class ResidualHead(nn.Module):
    """All levels: what the student has to restore, and the judgement of what it did not."""

    def __init__(self, level_channels: tuple[int, ...], grids_hw: list[tuple[int, int]]):
        super().__init__()
        self.whitening = nn.ModuleList(ChannelWhitening(channels) for channels in level_channels)
        judged = zip(level_channels, grids_hw, strict=True)
        self.distance = nn.ModuleList(ResidualDistance(channels, grid_hw) for channels, grid_hw in judged)

    def targets(self, levels: list[Tensor]) -> list[Tensor]:
        """Teacher features (N, C, h, w) of the levels, fine to coarse -> the same shapes, whitened."""
        return [whiten(level) for whiten, level in zip(self.whitening, levels, strict=True)]

    def forward(self, residuals: list[Tensor]) -> list[Tensor]:
        """Residuals (N, C, h, w) of the levels -> distance maps (N, 1, h, w), whose sum is a mean over levels."""
        judged = zip(self.distance, residuals, strict=True)
        return [distance(residual) / len(self.distance) for distance, residual in judged]
