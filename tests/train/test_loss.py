"""The distillation loss in every reading, against formulas written out by hand."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rdedge_train.loss import LossReading, distillation_loss

READINGS: tuple[LossReading, ...] = get_args(LossReading)


def random_levels(seed: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, n, n, generator=generator) for c, n in ((4, 8), (8, 4), (16, 2))]


def one_minus_cosine(a: Tensor, b: Tensor) -> float:
    return float(1.0 - (a @ b) / (a.norm() * b.norm()))


def by_hand(teacher: list[Tensor], student: list[Tensor], reading: LossReading, sample: int) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        if reading == "flattened":
            total += one_minus_cosine(t[sample].flatten(), s[sample].flatten())
        elif reading == "squared":
            total += float(((t[sample] - s[sample]) ** 2).sum()) / t[sample].numel()
        else:
            rows = range(t.shape[2])
            places = [(y, x) for y in rows for x in rows]
            total += sum(one_minus_cosine(t[sample, :, y, x], s[sample, :, y, x]) for y, x in places) / len(places)
    return total


@pytest.mark.parametrize("reading", READINGS)
def test_loss_per_sample_is_the_formula(reading: LossReading) -> None:
    teacher, student = random_levels(0), random_levels(1)
    loss = distillation_loss(teacher, student, reading)
    assert loss.shape == (2,)
    assert loss.tolist() == pytest.approx([by_hand(teacher, student, reading, i) for i in range(2)], abs=1e-5)


@pytest.mark.parametrize("reading", READINGS)
def test_length_counts_in_the_squared_reading_alone(reading: LossReading) -> None:
    teacher = random_levels(0)
    assert distillation_loss(teacher, teacher, reading).tolist() == pytest.approx([0, 0], abs=1e-5)
    of_scaled_copy = distillation_loss(teacher, [3.0 * t for t in teacher], reading)
    if reading == "squared":
        assert (of_scaled_copy > 1.0).all()
    else:
        assert of_scaled_copy.tolist() == pytest.approx([0, 0], abs=1e-5)


def test_the_readings_differ_where_positions_differ_in_strength() -> None:
    teacher, student = torch.ones(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    teacher[..., 0] *= 100.0  # a strong position that agrees
    student[:, 1, :, 1] = -1.0  # a weak one that does not
    flattened = distillation_loss([teacher], [student], "flattened").item()
    per_position = distillation_loss([teacher], [student], "per-position").item()
    assert flattened == pytest.approx(1 - 200 / (2 * 20002**0.5), abs=1e-6)
    assert per_position == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("reading", READINGS)
def test_gradient_is_finite_for_an_all_zero_student(reading: LossReading) -> None:
    student = [torch.zeros_like(t).requires_grad_() for t in random_levels(0)]
    distillation_loss(random_levels(0), student, reading).mean().backward()
    assert all(s.grad is not None and torch.isfinite(s.grad).all() for s in student)


def test_a_missing_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        distillation_loss(random_levels(0), random_levels(1)[:2], "flattened")
