"""Finds pictures of one and the same part: a detector knows such a part again, and a threshold trusts it too much."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

TWIN_CORRELATION = 0.5  # between pictures of different parts about 0.2, of one part 0.6 to 0.9 (magnetic tiles)
_GRID = 16  # positions a side; twins must lie alike in the picture


def coarse_features(chunks: Iterable[list[Tensor]]) -> Tensor:
    """Teacher features, chunk by chunk and fine to coarse -> (n, C, 16, 16) of stride 16, float32 on the CPU."""
    return torch.cat([adaptive_avg_pool2d(levels[2], _GRID).cpu() for levels in chunks])


def highest_correlations(of: Tensor, to: Tensor) -> Tensor:
    """For each picture the highest correlation with any of the others: (n, C, h, w), (m, C, h, w) -> (n,), in -1..1.

    Of what sets a picture apart from the mean of ``to``, channel by channel and position by position; all that parts
    have in common drops out.
    """
    mean = to.mean(dim=0, keepdim=True)
    own, others = (normalize((features - mean).flatten(1), dim=1) for features in (of, to))
    return (own @ others.T).amax(dim=1)
