"""The ablation benchmark: every method trains and judges what it is given, and the table says what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE_HW = (64, 64)
Module = Any  # a benchmark, loaded by path


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("ablation")


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("baselines")


def discs(n: int, seed: int, *, is_marked: bool) -> NDArray[np.uint8]:
    """Grey discs with noise (n, 64, 64, 3), with a bright square at the top left if asked."""
    frames_u8 = np.full((n, *SIZE_HW, 3), 90, np.uint8)
    for frame in frames_u8:
        cv2.circle(frame, (32, 32), 20, (160, 160, 160), -1)
        if is_marked:
            frame[4:20, 4:20] = (250, 40, 40)
    return frames_u8 + np.random.default_rng(seed).integers(0, 9, frames_u8.shape, dtype=np.uint8)


@pytest.mark.parametrize("name", ["conventional_distillation", "nearest_neighbour", "one_class_svm", "auto_encoder"])
def test_a_baseline_finds_a_gross_defect_and_its_place(name: str, ablation: Module, baselines: Module) -> None:
    teacher = ablation.imagenet_teacher()
    train = baselines.pictures(teacher, discs(16, seed=0, is_marked=False))
    test_u8 = np.concatenate([discs(9, seed=1, is_marked=False), discs(9, seed=2, is_marked=True)])
    config = ablation.train_config(SIZE_HW, "mff+oce", "plain", epochs=20, seed=0)
    judgement = getattr(baselines, name)(train, baselines.pictures(teacher, test_u8), config)
    assert judgement.scores.shape == (18,)
    assert judgement.scores[9:].min() > judgement.scores[:9].max()
    if name == "one_class_svm":
        assert judgement.maps is None
        return
    assert judgement.maps.shape == (18, *SIZE_HW)
    np.testing.assert_array_equal(judgement.maps.max(axis=(1, 2)), judgement.scores)
    for anomaly_map in judgement.maps[9:]:
        row, column = np.unravel_index(anomaly_map.argmax(), SIZE_HW)
        assert row < 28 and column < 28


@pytest.mark.parametrize("name", ["conventional_distillation", "nearest_neighbour", "auto_encoder"])
def test_a_baseline_depends_on_the_seed_alone(
    name: str, ablation: Module, baselines: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MEMORY_VECTORS", 40)  # fewer than there are, so that the seed decides
    train = baselines.pictures(ablation.imagenet_teacher(), discs(9, seed=0, is_marked=False))
    configs = [ablation.train_config(SIZE_HW, "mff+oce", "plain", epochs=1, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (getattr(baselines, name)(train, train, config).scores for config in configs)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_is_remembered_is_near(ablation: Module, baselines: Module) -> None:
    train = baselines.pictures(ablation.imagenet_teacher(), discs(5, seed=0, is_marked=False))
    config = ablation.train_config(SIZE_HW, "mff+oce", "plain", epochs=1, seed=0)
    assert baselines.nearest_neighbour(train, train, config).scores.max() < 0.1  # rounding; an other part's are about 5


def test_the_conventional_student_has_the_teachers_shape_and_not_its_weights(
    ablation: Module, baselines: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    students: list[torch.nn.Module] = []
    optimise = baselines._optimise

    def spied(module: torch.nn.Module, *rest: object) -> None:
        optimise(module, *rest)
        students.append(module)

    monkeypatch.setattr(baselines, "_optimise", spied)
    teacher = ablation.imagenet_teacher()
    train = baselines.pictures(teacher, discs(4, seed=0, is_marked=False))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    baselines.conventional_distillation(train, train, ablation.train_config(SIZE_HW, "mff+oce", "plain", 1, 0))
    weights = dict(teacher.encoder.named_parameters())
    for key, value in students[0].named_parameters():
        assert value.shape == weights[key].shape
        assert value.requires_grad
        if value.numel() > 1000:
            assert abs(np.corrcoef(value.detach().flatten(), weights[key].flatten())[0, 1]) < 0.3
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_the_command_measures_every_row_with_every_seed(
    ablation: Module, parts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("results_file"), "RESULTS", tmp_path)
    argv = ["ablation.py", "--data", str(parts_folder), "--image-size", "64", "--epochs", "1", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--train-limit", "6"])
    ablation.main()
    (record,) = tmp_path.glob("*_ablation_parts.json")
    figures = json.loads(record.read_text())["figures"]["image AUROC, AU-PRO"]
    assert list(figures) == list(ablation.ROWS)
    for row, pairs in figures.items():
        assert len(pairs) == 2
        assert all(0.0 <= image <= 1.0 for image, _ in pairs)
        assert all((place is None) == ("SVM" in row) for _, place in pairs)
    assert len({json.dumps(figures[row]) for row in ablation.REVERSE}) == len(ablation.REVERSE)
    text = record.with_suffix(".md").read_text()
    assert "64x64 pixels; 6 good parts" in text
    assert "4 good and 4 defective test parts" in text
    assert "stopped before" not in text


def test_a_folder_gives_labelled_test_parts_and_good_ones_spread_over_all(ablation: Module, parts_folder: Path) -> None:
    task = ablation.folder_task(parts_folder, 64, 3, ablation.imagenet_teacher())
    assert [path.stem for path in task.good] == ["000", "005", "011"]
    assert task.is_defective.sum() == 4
    assert task.is_defective.tolist() == [bool(mask.any()) for mask in task.masks]
    assert len(ablation.folder_task(parts_folder, 64, 100, ablation.imagenet_teacher()).good) == 12


def test_digits_are_judged_by_every_method(ablation: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames_u8, labels = ablation.digits()
    few = np.concatenate([np.flatnonzero(labels == digit)[:16] for digit in range(10)])
    monkeypatch.setattr(ablation, "digits", lambda: (frames_u8[few], labels[few]))
    rows = ("nearest neighbour, stride 16", "one-class SVM on pooled features")
    monkeypatch.setattr(ablation, "DIGITS_ROWS", rows)
    answers = list(ablation.digits_figures(tmp_path, ablation.imagenet_teacher(), epochs=1, seeds=[0, 1]))
    assert [row for row, _ in answers] == [*rows, *rows]
    assert all(image > 0.8 and place is None for _, (image, place) in answers)
    assert answers[0] != answers[2]


def test_the_baselines_see_the_parts_that_the_reverse_student_is_trained_on(
    ablation: Module, parts_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = ablation.imagenet_teacher()
    task = ablation.folder_task(parts_folder, 64, None, teacher)
    all_u8 = ablation.read_frames(parts_folder, task.good, ablation.input_spec((64, 64))).frames_u8
    trained, seen = [], []
    fit, baseline = ablation.fit, "nearest neighbour, stride 16"
    nearest = ablation.BASELINES[baseline]

    def fit_and_tell(data: Path, out: Path, config: object, world: object) -> None:
        fit(data, out, config, world)
        names = ablation.open_run(out).record.train_images
        trained.append(all_u8[[int(Path(name).stem) for name in names]])

    def nearest_and_tell(train: Any, test: Any, config: object) -> object:
        seen.append(train.frames_u8)
        return nearest(train, test, config)

    monkeypatch.setattr(ablation, "fit", fit_and_tell)
    monkeypatch.setitem(ablation.BASELINES, baseline, nearest_and_tell)
    for seed in (0, 1):
        list(ablation.each_row(task, [ablation.ROWS[2], baseline], teacher, 1, seed))
    assert not np.array_equal(*trained)
    for by_student, by_baseline in zip(trained, seen, strict=True):
        np.testing.assert_array_equal(by_student, by_baseline)


def test_the_table_shows_mean_and_spread_and_leaves_blank_what_is_missing(ablation: Module) -> None:
    text = ablation.table({"a": [(0.9, 0.5), (0.8, 0.7)], "b": [(0.75, None)], "c": []}, seeds=2)
    assert "| a | 0.850 ± 0.071 | 0.600 ± 0.141 | 2 |" in text
    assert "| b | 0.750 |  | 1 |" in text
    assert "| c |  |  | 0 |" in text
    assert "fewer than 2 seeds: the run was stopped" in text
    assert "stopped" not in ablation.table({"a": [(0.9, 0.5), (0.8, 0.7)]}, seeds=2)


def test_digits_keep_their_labels_and_fill_the_range(ablation: Module) -> None:
    frames_u8, labels = ablation.digits()
    assert frames_u8.shape == (1797, 64, 64, 3) and frames_u8.dtype == np.uint8
    assert frames_u8.min() == 0 and frames_u8.max() == 255
    assert sorted(set(labels.tolist())) == list(range(10))
    ones, zeros = frames_u8[labels == 1].mean(axis=0), frames_u8[labels == 0].mean(axis=0)
    assert ones[32, 32, 0] > 200 > 60 > zeros[32, 32, 0]
