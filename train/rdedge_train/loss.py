"""The distillation loss: cosine distance between teacher and student, summed over levels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import cosine_similarity

from rdedge_train.anomaly_map import cosine_distance

LossReading = Literal["flattened", "per-position", "squared"]


def distillation_loss(teacher: list[Tensor], student: list[Tensor], reading: LossReading) -> Tensor:
    """Per-sample loss (N,), to be averaged over the batch.

    ``flattened``: a level's whole tensor is one vector (the official code, and what its 98.5 % was reached with);
    ``per-position``: the mean of the distance map over positions (the paper's equations 1 and 2);
    ``squared``: the mean squared difference, for whitened features, whose length counts as well as their direction.
    """
    if reading == "squared":
        terms = [(t - s).square().mean(dim=(1, 2, 3)) for t, s in zip(teacher, student, strict=True)]
    elif reading == "flattened":
        terms = [1.0 - cosine_similarity(t.flatten(1), s.flatten(1)) for t, s in zip(teacher, student, strict=True)]
    else:
        terms = [cosine_distance(t, s).mean(dim=(1, 2, 3)) for t, s in zip(teacher, student, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
