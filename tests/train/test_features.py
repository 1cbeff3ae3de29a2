"""Teacher features: the same whether kept or computed at each use, and kept only where memory allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import rdedge_train.fit
from rdedge_train.features import QuickTeacher, TeacherFeatures, memory_budget_bytes, quick_teacher
from rdedge_train.run_folder import WEIGHTS_FILE, EpochRecord, open_run
from rdedge_train.teachers import Teacher, load_teacher_weights

Train = Callable[..., list[EpochRecord]]
CPU = torch.device("cpu")
PLENTY = 1 << 40
FLOATS_A_FRAME = 24 * 16 * 16 + 40 * 8 * 8 + 112 * 4 * 4  # channels of lite0's levels at 64x64


@pytest.fixture(scope="module")
def teacher() -> QuickTeacher:
    teacher = Teacher("edge-lite0")
    load_teacher_weights(teacher, "edge-lite0", "imagenet")
    return quick_teacher(teacher, (64, 64), CPU)


def frames(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("missing_bytes", [0, 1], ids=["just-fits", "one-byte-short"])
def test_budget_decides_what_is_kept(teacher: QuickTeacher, missing_bytes: int) -> None:
    needed = 5 * FLOATS_A_FRAME * 4
    features = TeacherFeatures(teacher, frames(5), CPU, budget_bytes=needed - missing_bytes)
    assert features.bytes_needed == needed
    assert features.is_kept is (missing_bytes == 0)
    assert len(features) == 5


@pytest.mark.parametrize("n", [0, 1, 2, 16, 20], ids="batch of {}".format)
def test_kept_features_equal_computed_ones_to_the_bit(teacher: QuickTeacher, n: int) -> None:
    kept = TeacherFeatures(teacher, frames(20), CPU, budget_bytes=PLENTY)
    computed = TeacherFeatures(teacher, frames(20), CPU, budget_bytes=0)
    assert (kept.is_kept, computed.is_kept) == (True, False)
    chosen = np.random.default_rng(1).permutation(20)[:n]
    for a, b in zip(kept.batch(chosen), computed.batch(chosen), strict=True):
        assert a.shape[0] == n
        assert torch.equal(a, b)


@pytest.mark.parametrize("budget_bytes", [PLENTY, 0], ids=["kept", "computed"])
def test_in_order_gives_every_frame_once(teacher: QuickTeacher, budget_bytes: int) -> None:
    features = TeacherFeatures(teacher, frames(20), CPU, budget_bytes=budget_bytes)
    chunks = list(features.in_order())
    assert [len(chunk[0]) for chunk in chunks] == [16, 4]
    for level, expected in enumerate(features.batch(np.arange(20))):
        assert torch.equal(torch.cat([chunk[level] for chunk in chunks]), expected)


@pytest.mark.parametrize("model", ["edge-lite0", "edge-lite2", "resnet18", "wide_resnet50_2"])
def test_features_are_the_teachers_but_for_rounding(model: str) -> None:
    teacher = Teacher(model)
    load_teacher_weights(teacher, model, "random:0")
    stirred(teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    features = TeacherFeatures(quick_teacher(teacher, (64, 64), CPU), frames(3), CPU, budget_bytes=0)
    for a, b in zip(features.batch(np.arange(3)), teacher(torch.from_numpy(frames(3))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    after = teacher.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def stirred(teacher: Teacher) -> None:
    """Batch norms that do something, as trained ones do: folding them wrong is seen."""
    generator = torch.Generator().manual_seed(5)
    for norm in teacher.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for tensor in (norm.running_var, norm.weight, norm.running_mean, norm.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("budget_bytes", [PLENTY, 0], ids=["kept", "computed"])
def test_features_lie_channels_last(teacher: QuickTeacher, budget_bytes: int) -> None:
    features = TeacherFeatures(teacher, frames(5), CPU, budget_bytes=budget_bytes)
    for chosen in (np.arange(5), np.array([3, 0, 0, 4])):
        for level in features.batch(chosen):
            assert level.is_contiguous(memory_format=torch.channels_last)


def test_training_is_the_same_to_the_bit_without_memory_for_features(
    parts_folder: Path, tiny_run: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdedge_train.fit, "memory_budget_bytes", lambda processes: 0)
    recomputed = train(parts_folder, tmp_path / "run")
    assert recomputed == open_run(tiny_run).history
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == (tiny_run / WEIGHTS_FILE).read_bytes()


def test_memory_is_shared_by_the_processes_of_a_machine() -> None:
    assert 0 < memory_budget_bytes(4) < memory_budget_bytes(1)
