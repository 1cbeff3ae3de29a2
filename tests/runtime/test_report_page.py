"""Numbers on the axes of a report's charts: few, round, and within the axis, whatever its ends are."""

from __future__ import annotations

import numpy as np
import pytest

from rdedge.bench.charts import timeline
from rdedge.report_page import axis_ticks


def check_ticks(low: float, high: float) -> None:
    ticks = list(axis_ticks(low, high))
    values = [float(text) for _, text in ticks]
    assert 3 <= len(ticks) <= 8, (low, high, ticks)
    assert all(-1e-9 <= share <= 1.0 + 1e-9 for share, _ in ticks), (low, high, ticks)
    assert values == sorted(set(values)), (low, high, ticks)
    step = (values[-1] - values[0]) / (len(values) - 1)
    assert f"{step:.0e}"[0] in "125" and abs(step - float(f"{step:.0e}")) < 1e-6 * step, (low, high, ticks)
    for value, (share, _) in zip(values, ticks, strict=True):
        assert abs(low + share * (high - low) - value) < 1e-6 * step, (low, high, ticks)


@pytest.mark.parametrize("high", [0.3, 0.0003, 0.6, 3.0, 30.0, 3e-6, 1.0])
def test_an_axis_that_is_three_steps_long_has_numbers(high: float) -> None:
    check_ticks(0.0, high)


def test_every_axis_has_three_to_eight_round_numbers() -> None:
    for k in range(1, 100_001, 7):
        check_ticks(0.0, k * 1e-4)
    rng = np.random.default_rng(0)
    for low, power in rng.uniform((-100.0, -4.0), (100.0, 4.0), (5000, 2)).tolist():
        check_ticks(low, low + 10.0**power)


def test_the_texts_are_as_short_as_their_step() -> None:
    assert [text for _, text in axis_ticks(0.0, 0.3)] == ["0.0", "0.1", "0.2"]
    assert [text for _, text in axis_ticks(-2.0, 20.0)] == ["0", "5", "10", "15", "20"]


def test_a_chart_draws_such_an_axis() -> None:
    assert ">0.2</text>" in timeline("engine", [0.0, 0.1], [0.2113, 0.3])
