"""Disturbed copies: what each tolerance changes, the same for the same part, and a head that expects it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rdedge_train.data import read_frames
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import fit_head
from rdedge_train.run_folder import EpochRecord, FinishedRun, open_run
from rdedge_train.tolerance import NOISE_LEVELS, Tolerance, blurred, brighter, disturbed_copies, noisy

Train = Callable[..., list[EpochRecord]]
GREY = 120


def grey(n: int, size_hw: tuple[int, int] = (64, 96)) -> NDArray[np.uint8]:
    """Grey frames with a white square, whose edges show a shift."""
    frames_u8 = np.full((n, *size_hw, 3), GREY, np.uint8)
    frames_u8[:, 20:40, 30:60] = 250
    return frames_u8


def copies(frames_u8: NDArray[np.uint8], tolerance: Tolerance, seed: int = 0, first: int = 0) -> NDArray[np.uint8]:
    return disturbed_copies(frames_u8, np.arange(first, first + len(frames_u8)), tolerance, seed)


def test_none_changes_nothing() -> None:
    assert (copies(grey(2), "none") == grey(2)).all()


@pytest.mark.parametrize("tolerance", ["light", "light+jig"])
def test_a_copy_is_of_its_seed_and_number_alone(tolerance: Tolerance) -> None:
    four = copies(grey(4), tolerance)
    assert (copies(grey(2), tolerance, first=2) == four[2:]).all()
    assert all((four[i] != four[j]).any() for i in range(4) for j in range(i))
    assert (copies(grey(4), tolerance, seed=1) != four).any()


def test_light_changes_brightness_either_way_within_its_share() -> None:
    means = copies(grey(64), "light")[:, :10, :10].mean(axis=(1, 2, 3))
    assert 0.8 * GREY - 2 < means.min() < 0.85 * GREY
    assert 1.15 * GREY < means.max() < 1.2 * GREY + 2


def test_light_adds_grain_up_to_its_limit() -> None:
    spreads = copies(grey(64), "light")[:, :10, :10].std(axis=(1, 2, 3))
    assert spreads.min() < 1.0
    assert 0.8 * NOISE_LEVELS < spreads.max() < 1.15 * NOISE_LEVELS


def is_bright(frame_u8: NDArray[np.uint8]) -> NDArray[np.bool_]:
    level: NDArray[np.float32] = frame_u8.mean(axis=2, dtype=np.float32)
    return level > (level.min() + level.max()) / 2


def test_only_jig_moves_the_part() -> None:
    lit, jigged = (copies(grey(16), tolerance) for tolerance in ("light", "light+jig"))
    where = is_bright(grey(1)[0])
    assert all((is_bright(frame) != where).sum() <= 4 for frame in lit), "but for a corner that the blur rounds off"
    changed = [int((is_bright(frame) != where).sum()) for frame in jigged]
    assert max(changed) > 20, "edges 20 and 30 pixels long, moved by up to a pixel"
    assert max(changed) < 2 * 2 * (20 + 30)


def test_each_disturbance_is_what_its_name_says() -> None:
    frame_u8 = grey(1)[0]
    assert (brighter(frame_u8, 1.2)[0, 0] == 144).all()
    assert brighter(frame_u8, 1.2).max() == 255
    assert np.abs(np.diff(blurred(frame_u8, 1.0)[30, :, 0].astype(int))).max() < 130 * 0.5
    assert abs(float(noisy(frame_u8, 4.0, np.random.default_rng(0))[:15].std()) - 4.0) < 0.3


def judged(run: FinishedRun, frames_u8: NDArray[np.uint8]) -> float:
    with torch.no_grad():
        return float(run.detector(torch.from_numpy(frames_u8))[1].median())


def test_a_head_that_tolerates_grain_is_less_alarmed_by_it(parts_folder: Path, tmp_path: Path, train: Train) -> None:
    train(parts_folder, tmp_path / "run", head="residual", loss="squared", tolerance="none", epochs=1)
    run = open_run(tmp_path / "run")
    paths = [parts_folder / name for name in run.record.train_images]
    frames_u8 = read_frames(parts_folder, paths, run.record.config.input).frames_u8
    cpu = torch.device("cpu")
    teacher = quick_teacher(run.detector.teacher, frames_u8.shape[1:3], cpu)
    features = TeacherFeatures(teacher, frames_u8, cpu, budget_bytes=0)
    rng = np.random.default_rng(5)
    grainy = np.stack([noisy(frame, NOISE_LEVELS, rng) for frame in frames_u8])
    alarm = {}
    tolerances: tuple[Tolerance, ...] = ("none", "light")
    for tolerance in tolerances:
        fit_head(run.detector, features, tolerance, seed=0)
        alarm[tolerance] = judged(run, grainy) / judged(run, frames_u8)
    assert alarm["light"] < 0.8 * alarm["none"]
