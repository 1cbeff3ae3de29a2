"""Judges what the student could not restore as a vector, by how such vectors vary on good parts at that position.

A cosine distance weighs all channels alike and all positions alike. Good parts do neither: some directions of channel
space hardly ever move, and how the rest move depends on where one looks. So teacher features are whitened before they
are distilled, and the residual is judged by its Mahalanobis distance at each position, in the few directions in which
good parts vary least (Rippel et al., "Modeling the distribution of normal data in pre-trained deep features for
anomaly detection", ICPR 2020, found these to tell most).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

KEPT_DIRECTIONS = 20
POOLED_SHARE = 0.5  # of the covariance: the mean over all positions; the rest is the position's own
_VARIANCE_FLOOR = 1e-3  # of the mean variance, so that no direction is all that counts
_LEAST_VARIANCE = 1e-6  # FP16 must hold 1 / deviation, also of what never varies


class Moments:
    """Mean and covariance of vectors that come chunk by chunk, in float64: one pair for each of P groups."""

    def __init__(self) -> None:
        self._count = 0
        self._total: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, vectors_PNC: Tensor) -> None:
        """Vectors (P, n, C), n new ones of each group."""
        vectors = vectors_PNC.detach().double()
        self._count += vectors.shape[1]
        if self._total is None or self._products is None:
            self._total, self._products = vectors.sum(1), vectors.mT @ vectors
        else:
            self._total += vectors.sum(1)
            self._products.baddbmm_(vectors.mT, vectors)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """(P, C) and (P, C, C); at least one chunk must have come."""
        assert self._total is not None and self._products is not None
        mean = self._total / self._count
        return mean, self._products / self._count - mean.unsqueeze(2) * mean.unsqueeze(1)


class ChannelWhitening(nn.Module):
    """One level's features with unit variance in every direction of channel space (ZCA). Identity until fitted."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("matrix", torch.eye(channels).view(channels, channels, 1, 1))

    @staticmethod
    def vectors(x_NCHW: Tensor) -> Tensor:
        """(N, C, h, w) -> (1, N * h * w, C): all positions together."""
        return x_NCHW.movedim(1, -1).flatten(0, 2).unsqueeze(0)

    def fit(self, moments: Moments) -> None:
        """``moments``: of the vectors of good parts."""
        (mean,), (covariance,) = moments.mean_and_covariance()
        variances, directions = torch.linalg.eigh(covariance)
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

    @staticmethod
    def vectors(x_NCHW: Tensor) -> Tensor:
        """(N, C, h, w) -> (h * w, N, C)."""
        n, channels, height, width = x_NCHW.shape
        return x_NCHW.permute(2, 3, 0, 1).reshape(height * width, n, channels)

    def fit(self, moments: Moments, pooled_share: float = POOLED_SHARE) -> None:
        """``moments``: of the vectors of good parts' residuals; ``pooled_share``: see POOLED_SHARE."""
        mean, own = moments.mean_and_covariance()
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
        projected = self.vectors(residual_NCHW - self.mean) @ self.directions.to(residual_NCHW.dtype)
        distance = (projected * projected).sum(dim=2).sqrt()
        return distance.permute(1, 0).reshape(n, 1, height, width)


class ResidualHead(nn.Module):
    """All levels: what the student has to restore, and the judgement of what it did not."""

    def __init__(self, level_channels: tuple[int, ...], grids_hw: list[tuple[int, int]]):
        super().__init__()
        self.whitening = nn.ModuleList(ChannelWhitening(channels) for channels in level_channels)
        judged = zip(level_channels, grids_hw, strict=True)
        self.distance = nn.ModuleList(ResidualDistance(channels, grid_hw) for channels, grid_hw in judged)

    def fit_whitening(self, chunks: Iterable[list[Tensor]]) -> None:
        """Teacher features of good parts, chunk by chunk, each (n, C, h, w) a level."""
        for whiten, moments in _moments(self.whitening, ChannelWhitening, chunks):
            whiten.fit(moments)

    def fit(self, chunks: Iterable[list[Tensor]], pooled_share: float = POOLED_SHARE) -> None:
        """Residuals of good parts, chunk by chunk, each (n, C, h, w) a level."""
        for distance, moments in _moments(self.distance, ResidualDistance, chunks):
            distance.fit(moments, pooled_share)

    def targets(self, levels: list[Tensor]) -> list[Tensor]:
        """Teacher features (N, C, h, w) of the levels, fine to coarse -> the same shapes, whitened."""
        return [whiten(level) for whiten, level in zip(self.whitening, levels, strict=True)]

    def forward(self, residuals: list[Tensor]) -> list[Tensor]:
        """Residuals (N, C, h, w) of the levels -> distance maps (N, 1, h, w), whose sum is a mean over levels."""
        judged = zip(self.distance, residuals, strict=True)
        return [distance(residual) / len(self.distance) for distance, residual in judged]


Judge = TypeVar("Judge", ChannelWhitening, ResidualDistance)


def _moments(modules: nn.ModuleList, kind: type[Judge], chunks: Iterable[list[Tensor]]) -> list[tuple[Judge, Moments]]:
    """Each level's module with the moments of its vectors; the chunks are gone through once."""
    levels = [(module, Moments()) for module in modules if isinstance(module, kind)]
    for chunk in chunks:
        for (module, moments), level in zip(levels, chunk, strict=True):
            moments.add(module.vectors(level))
    return levels
