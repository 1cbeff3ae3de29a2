"""Drift is told soon, chance is not: simulated over many reference sets, and by light and focus of real pictures."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.good_parts import Distribution
from rdedge.line.drift import (
    LIMIT_SIGMA,
    MIN_SAMPLES,
    WEIGHT,
    Chart,
    DriftWatch,
    distribution_of,
    frame_statistics,
    measure_frame,
)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def normal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(10.0, 2.0, n)


def skewed(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.gamma(2.0, 1.0, n)


def first_alarm(chart: Chart, values: NDArray[np.float64]) -> int | None:
    for index, value in enumerate(values):
        if chart.add(float(value)) is not None:
            return index
    return None


def alarms(draw: Draw, *, held_out: int, frames: int, charts: int, shift: float = 0.0) -> list[int | None]:
    """The first alarm of each of so many charts, every one with held-out parts of its own."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(charts):
        chart = Chart("score", distribution_of(draw(rng, held_out)))
        found.append(first_alarm(chart, draw(rng, frames) + shift))
    return found


@pytest.mark.parametrize("draw", [normal, skewed])
@pytest.mark.parametrize("held_out", [20, 50, 300])
def test_good_parts_raise_no_alarm(draw: Draw, held_out: int) -> None:
    """None in 200,000 frames that are looked at, one a second: more than two days of a camera."""
    assert alarms(draw, held_out=held_out, frames=4000, charts=50) == [None] * 50


@pytest.mark.parametrize(
    ("held_out", "shift_std", "within"), [(50, 1.0, 800), (50, 2.0, 80), (300, 1.0, 120), (300, 4.0, 40)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_is_told_soon(held_out: int, shift_std: float, within: int, sign: int) -> None:
    found = alarms(normal, held_out=held_out, frames=3000, charts=20, shift=sign * shift_std * 2.0)
    late = [index for index in found if index is None or index > within]
    assert len(late) <= 2, found


def test_a_creeping_score_is_told_before_rejects_rise() -> None:
    """Up by a thousandth of the spread a frame: told while less than 5 percent are rejected, from 1 percent."""
    rng = np.random.default_rng(1)
    good = normal(rng, 2000)
    limit = np.quantile(good, 0.99)
    rates = []
    for _ in range(20):
        chart = Chart("score", distribution_of(normal(rng, 200)))
        alarm = first_alarm(chart, normal(rng, 5000) + 0.001 * 2.0 * np.arange(5000))
        assert alarm is not None
        rates.append(float(np.mean(good + 0.001 * 2.0 * alarm > limit)))
    assert np.median(rates) < 0.05


def test_single_defects_are_no_drift() -> None:
    rng = np.random.default_rng(2)
    scores = normal(rng, 4000)
    scores[::25] = 1e6
    assert first_alarm(Chart("score", distribution_of(normal(rng, 200))), scores) is None


def test_too_few_held_out_parts_are_not_trusted() -> None:
    chart = Chart("score", distribution_of(np.linspace(1.0, 2.0, MIN_SAMPLES - 1)))
    assert first_alarm(chart, np.full(5000, 99.0)) is None
    few = Chart("score", distribution_of(np.linspace(1.0, 2.0, MIN_SAMPLES)))
    assert first_alarm(few, np.full(5000, 99.0)) is not None


def test_the_limit_is_that_of_the_charts_variance() -> None:
    """EWMA of independent z: variance w / (2 - w), and 1 / n for the reference's own chance."""
    assert Chart("score", distribution_of(np.arange(100.0))).limit_z == pytest.approx(
        LIMIT_SIGMA * (WEIGHT / (2 - WEIGHT) + 0.01) ** 0.5
    )
    rng = np.random.default_rng(3)
    chart = Chart("score", distribution_of(rng.random(100_000)))
    means = []
    for value in rng.random(20_000):
        chart.add(float(value))
        means.append(chart.mean_z)
    assert np.std(means[500:]) == pytest.approx((WEIGHT / (2 - WEIGHT)) ** 0.5, rel=0.15)


def test_a_drift_is_told_once_and_its_end_once() -> None:
    rng = np.random.default_rng(4)
    chart = Chart("brightness", distribution_of(rng.normal(120, 1, 100)))
    changes = [chart.add(float(value)) for value in [*np.full(200, 132.0), *rng.normal(120, 1, 400)]]
    told = [change for change in changes if change is not None]
    assert [change.is_drifting for change in told] == [True, False]
    assert told[0].text.startswith("brightness has risen to 132; held-out good parts had 1")
    assert told[1].text.startswith("brightness is back at 12")


def test_a_drift_at_the_limit_does_not_flicker() -> None:
    chart = Chart("brightness", distribution_of(np.random.default_rng(4).normal(120, 1, 100)))
    assert first_alarm(chart, np.full(200, 132.0)) is not None
    changes = []
    while chart.mean_z > 0.6 * chart.limit_z:
        changes.append(chart.add(119.0))
    assert len(changes) > 5 and changes == [None] * len(changes)


def test_a_distribution_keeps_the_quantiles_of_its_values() -> None:
    values = np.random.default_rng(0).normal(size=101)
    kept = distribution_of(values)
    assert kept.samples == 101 and kept.quantiles == pytest.approx(np.sort(values)[::5])
    assert distribution_of(np.full(3, 0.1, np.float32)) == Distribution(
        samples=3, quantiles=(float(np.float32(0.1)),) * 21
    )


def test_light_contrast_and_focus_are_measured_in_grey_levels() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, 1::2] = board[1::2, ::2] = 200
    measures = measure_frame(board)
    assert (measures.brightness, measures.contrast) == pytest.approx((100.0, 100.0), abs=1e-6)
    assert measures.sharpness == pytest.approx(800.0)
    blurred = measure_frame(cv2.GaussianBlur(board, (9, 9), 3).astype(np.uint8))
    assert blurred.brightness == pytest.approx(100.0, abs=1.0) and blurred.sharpness < 10.0


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("brightness", lambda frame: cv2.convertScaleAbs(frame, alpha=1.1)),
        ("contrast", lambda frame: cv2.addWeighted(frame, 0.8, np.full_like(frame, 140), 0.2, 0)),
        ("sharpness", lambda frame: cv2.GaussianBlur(frame, (0, 0), 1.0)),
    ],
)
def test_ten_percent_more_light_or_less_focus_is_told_within_a_hundred_frames(
    draw_washer: Callable[..., NDArray[np.uint8]],
    quantity: str,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    rng = np.random.default_rng(0)

    def good(seed: int) -> NDArray[np.uint8]:
        """Light that varies by 2 percent from part to part."""
        return cv2.convertScaleAbs(draw_washer(seed), alpha=float(rng.normal(1.0, 0.02))).astype(np.uint8)

    held_out = np.stack([good(seed) for seed in range(40)])
    watch = DriftWatch(frame_statistics(held_out), distribution_of(rng.normal(1.0, 0.1, 40)))
    assert [c for seed in range(300) for c in watch.add(good(1000 + seed), float(rng.normal(1.0, 0.1)))] == []
    told: dict[str, int] = {}
    for index in range(100):
        for found in watch.add(change(good(2000 + index)), float(rng.normal(1.0, 0.1))):
            told.setdefault(found.quantity, index)
    assert quantity in told and "score" not in told
