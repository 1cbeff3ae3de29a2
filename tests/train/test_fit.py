"""Training: reproducible to the byte, resumable at any moment, and strict about what it resumes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import rdedge_train.fit
from rdedge.errors import DatasetError, RunError, UsageError
from rdedge_train.config import TrainConfig
from rdedge_train.data import read_frames
from rdedge_train.distributed import World
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import batches, fit, set_learning_rate
from rdedge_train.fold import quick
from rdedge_train.run_folder import (
    HELD_OUT_FILE,
    RUN_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    EpochRecord,
    open_run,
    read_record,
)
from rdedge_train.teachers import Teacher, load_teacher_weights

Train = Callable[..., list[EpochRecord]]
MakeConfig = Callable[..., TrainConfig]
WriteParts = Callable[..., Path]
DrawWasher = Callable[..., NDArray[np.uint8]]
Copied = Callable[[Path], Path]
Snapshot = Callable[[Path], dict[str, str]]

FINISHED = sorted([RUN_FILE, HELD_OUT_FILE, WEIGHTS_FILE])


def weights(run: Path) -> bytes:
    return (run / WEIGHTS_FILE).read_bytes()


def test_the_same_seed_gives_the_same_bytes(parts_folder: Path, tiny_run: Path, tmp_path: Path, train: Train) -> None:
    history = train(parts_folder, tmp_path / "run")
    assert history == open_run(tiny_run).history
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_another_seed_gives_another_model(parts_folder: Path, tiny_run: Path, tmp_path: Path, train: Train) -> None:
    history = train(parts_folder, tmp_path / "run", seed=1)
    assert history != open_run(tiny_run).history
    there, here = read_record(tiny_run), read_record(tmp_path / "run")
    assert there.held_out_images != here.held_out_images
    tensors = load_file(tmp_path / "run" / WEIGHTS_FILE)
    changed = [k for k, t in load_file(tiny_run / WEIGHTS_FILE).items() if not torch.equal(t, tensors[k])]
    assert {key.split(".")[0] for key in changed} == {"restorer", "head"}


def test_the_loss_falls(parts_folder: Path, tmp_path: Path, train: Train) -> None:
    losses = [e.loss for e in train(parts_folder, tmp_path / "run", epochs=6)]
    assert losses[1] < losses[0] and sum(losses[3:]) < sum(losses[:3])
    assert losses[-1] < losses[0] / 2


class Interrupter:
    """Counts calls of a function and raises in the given one, before or after it did its work."""

    def __init__(self, function: Callable[..., object], at_call: int, *, after: bool):
        self.function, self.at_call, self.after, self.calls = function, at_call, after, 0

    def __call__(self, *args: object) -> object:
        self.calls += 1
        if self.calls == self.at_call and not self.after:
            raise KeyboardInterrupt
        result = self.function(*args)
        if self.calls == self.at_call:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize(
    ("function", "at_call", "after", "epochs_kept"),
    [
        ("write_record", 1, False, 0),
        ("write_record", 1, True, 0),
        ("_step", 1, False, 0),
        ("_step", 4, True, 1),
        ("save_state", 1, False, 0),
        ("save_state", 1, True, 1),
        ("save_state", 2, True, 2),
        ("save_finished", 1, False, 3),
        ("save_finished", 1, True, 3),
    ],
    ids=[
        "before-the-record",
        "after-the-record",
        "first-step",
        "second-epoch",
        "before-first-save",
        "after-epoch-1",
        "after-epoch-2",
        "before-the-weights",
        "after-the-weights",
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    parts_folder: Path,
    three_epochs: Path,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    at_call: int,
    after: bool,
    epochs_kept: int,
) -> None:
    interrupter = Interrupter(getattr(rdedge_train.fit, function), at_call, after=after)
    steps: list[object] = []
    step = rdedge_train.fit._step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rdedge_train.fit, function, interrupter)
        train(parts_folder, tmp_path / "run", epochs=3)
    monkeypatch.setattr(rdedge_train.fit, "_step", lambda *args: (steps.append(args), step(*args))[1])
    history = train(parts_folder, tmp_path / "run", epochs=3)
    assert len(steps) == (3 - epochs_kept) * STEPS_AN_EPOCH
    assert history == open_run(three_epochs).history
    assert weights(tmp_path / "run") == weights(three_epochs)
    assert sorted(os.listdir(tmp_path / "run")) == FINISHED


STEPS_AN_EPOCH = 3  # 10 images in batches of at most 4


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory: pytest.TempPathFactory, parts_folder: Path, train: Train) -> Path:
    out = tmp_path_factory.mktemp("three") / "run"
    train(parts_folder, out, epochs=3)
    return out


def test_a_finished_run_is_returned_at_once(
    parts_folder: Path,
    tiny_run: Path,
    copied: Copied,
    train: Train,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copied(tiny_run)
    before = snapshot(run)
    monkeypatch.delattr(rdedge_train.fit, "_train")
    assert train(parts_folder, run) == open_run(tiny_run).history
    assert snapshot(run) == before


def test_leftovers_of_killed_processes_are_removed(
    parts_folder: Path, interrupted_run: Path, tiny_run: Path, copied: Copied, train: Train
) -> None:
    run = copied(interrupted_run)
    gone_pid = 2**22 + 1  # beyond Linux's largest
    for name in (RUN_FILE, HELD_OUT_FILE, STATE_FILE, WEIGHTS_FILE):
        (run / f".{name}.partial-{gone_pid}").write_bytes(b"half")
    train(parts_folder, run)
    assert sorted(os.listdir(run)) == FINISHED
    assert weights(run) == weights(tiny_run)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "edge-lite1", "model edge-lite0, now asked for edge-lite1"),
        ("ocbe", "oce", "ocbe mff+oce, now asked for oce"),
        ("head", "plain", "loss squared, now asked for flattened"),
        ("epochs", 3, "epochs 2, now asked for 3"),
        ("batch_size", 5, "batch_size 4, now asked for 5"),
        ("learning_rate", 0.001, "learning_rate 0.005, now asked for 0.001"),
        ("seed", 7, "seed 0, now asked for 7"),
        ("held_out_share", 0.3, "held_out_share 0.2, now asked for 0.3"),
        ("teacher_weights", "random:0", "teacher_weights imagenet, now asked for random:0"),
    ],
    ids=lambda v: v if isinstance(v, str) and " " not in v else "",
)
@pytest.mark.parametrize("stage", ["interrupted", "finished"])
def test_another_setting_is_not_resumed(
    parts_folder: Path,
    interrupted_run: Path,
    tiny_run: Path,
    train: Train,
    snapshot: Snapshot,
    stage: str,
    field: str,
    value: object,
    message: str,
) -> None:
    run = interrupted_run if stage == "interrupted" else tiny_run
    before = snapshot(run)
    others = {"teacher_weights": "random:0"} if value == "edge-lite1" else {}
    with pytest.raises(RunError) as caught:
        train(parts_folder, run, **({field: value} | others))
    remedy = "repeat the first command to resume, or name a new folder"
    assert str(caught.value) == f"{run}: was started with {message}; {remedy}"
    assert snapshot(run) == before


def test_other_images_are_not_resumed(interrupted_run: Path, parts_folder: Path, copied: Copied, train: Train) -> None:
    data = copied(parts_folder)
    record = read_record(interrupted_run)
    for changed, field in ((record.train_images[3], "train_sha256"), (record.held_out_images[0], "held_out_sha256")):
        original = (data / changed).read_bytes()
        cv2.imwrite(str(data / changed), np.full((64, 64, 3), 77, np.uint8))
        with pytest.raises(RunError, match=f"was started with {field} [0-9a-f]{{64}}, now asked for [0-9a-f]{{64}}"):
            train(data, interrupted_run)
        (data / changed).write_bytes(original)
    (data / record.train_images[0]).unlink()
    with pytest.raises(RunError, match="was started with train_sha256"):
        train(data, interrupted_run)


def test_moved_images_are_resumed(
    interrupted_run: Path, tiny_run: Path, parts_folder: Path, copied: Copied, train: Train
) -> None:
    data, run = copied(parts_folder), copied(interrupted_run)
    train(data, run)
    assert weights(run) == weights(tiny_run)


def test_another_teacher_under_the_same_name_is_not_resumed(parts_folder: Path, tmp_path: Path, train: Train) -> None:
    teacher = Teacher("edge-lite0")
    load_teacher_weights(teacher, "edge-lite0", "random:1")
    path = tmp_path / "teacher.safetensors"
    save_file(teacher.encoder.state_dict(), path)
    train(parts_folder, tmp_path / "run", teacher_weights=str(path), epochs=1)
    record = read_record(tmp_path / "run")
    assert record.teacher.startswith("teacher.safetensors sha256:")
    load_teacher_weights(teacher, "edge-lite0", "random:2")
    save_file(teacher.encoder.state_dict(), path)
    with pytest.raises(
        RunError, match=r"was started with teacher teacher.safetensors sha256:\w+, now asked for teacher"
    ):
        train(parts_folder, tmp_path / "run", teacher_weights=str(path), epochs=1)


def test_divergence_is_an_error_and_leaves_no_weights(
    parts_folder: Path, tmp_path: Path, make_config: MakeConfig, alone: World
) -> None:
    config = msgspec.structs.replace(make_config(), learning_rate=math.inf)
    with pytest.raises(RunError) as caught:
        fit(parts_folder, tmp_path / "run", config, alone)
    assert str(caught.value).startswith("the loss became nan and the held-out loss ")
    assert str(caught.value).endswith("in epoch 1; train into a new folder with a lower --learning-rate")
    assert sorted(os.listdir(tmp_path / "run")) == sorted([RUN_FILE, HELD_OUT_FILE])


def test_what_is_recorded(parts_folder: Path, tiny_run: Path, make_config: MakeConfig) -> None:
    record = read_record(tiny_run)
    assert record.config == make_config()
    assert record.data == str(parts_folder)
    together = sorted(record.train_images + record.held_out_images)
    assert together == [f"train/good/{i:03d}.png" for i in range(12)]
    assert (len(record.train_images), len(record.held_out_images)) == (10, 2)
    assert record.skipped_images == []
    assert record.teacher.startswith("efficientnet-lite0-57934424.pth sha256:")
    assert record.versions["torch"] == metadata.version("torch")
    assert set(record.versions) == {"python", "rdedge", "numpy", "torch", "torchvision"}


def test_bad_images_stop_the_run_before_anything_is_written(
    parts_folder: Path, copied: Copied, tmp_path: Path, train: Train
) -> None:
    data = copied(parts_folder)
    (data / "train/good/099.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1 of 13 images cannot be used: .*099.png: is empty"):
        train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_skipped_images_are_told_and_recorded(
    parts_folder: Path,
    copied: Copied,
    tmp_path: Path,
    tiny_run: Path,
    train: Train,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = copied(parts_folder)
    (data / "train/good/099.png").write_bytes(b"")
    train(data, tmp_path / "run", skip_bad=True)
    reason = f"{data}/train/good/099.png: is empty (0 bytes)"
    assert read_record(tmp_path / "run").skipped_images == [reason]
    assert f"skipped {reason}\n" in capfd.readouterr().err
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_names_that_are_not_utf8_are_recorded_as_escapes(tmp_path: Path, draw_washer: DrawWasher, train: Train) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9")
    data.mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "part.png"), draw_washer(i))
        (tmp_path / "part.png").rename(data / os.fsdecode(b"\xe4%d.png" % i))
    train(data, tmp_path / "run", epochs=1)
    record = open_run(tmp_path / "run").record
    assert sorted(record.train_images + record.held_out_images) == [rf"\udce4{i}.png" for i in range(4)]


def test_progress_is_told_line_by_line_where_nobody_watches(
    parts_folder: Path, tmp_path: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    history = train(parts_folder, tmp_path / "run")
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"epoch {e.epoch}/2  loss {e.loss:.4f}  held-out loss {e.held_out_loss:.4f}" for e in history]


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a folder with other things"])
def test_what_is_not_a_run_is_left_alone(
    parts_folder: Path, tmp_path: Path, train: Train, snapshot: Snapshot, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "a file":
        out.write_bytes(b"precious")
    elif kind == "a dangling link":
        out.symlink_to(tmp_path / "elsewhere")
    else:
        out.mkdir()
        (out / "thesis.odt").write_bytes(b"precious")
    before = snapshot(tmp_path)
    complaint = "is not empty and not a run" if "folder" in kind else "is not a folder"
    with pytest.raises(RunError) as caught:
        train(parts_folder, out)
    assert str(caught.value) == f"{out}: {complaint}; name a new folder"
    assert snapshot(tmp_path) == before


def test_a_batch_must_reach_every_process(parts_folder: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match="batch size 4 for 5 processes; use a larger --batch-size"):
        fit(parts_folder, tmp_path / "run", make_config(), World(0, 5, 5, torch.device("cpu")))


@pytest.mark.parametrize(
    ("size_hw", "good", "batch_size"), [((32, 32), 12, 1), ((32, 32), 2, 16)], ids=["batch-size-1", "two-parts"]
)
def test_a_single_value_cannot_be_normalised(
    tmp_path: Path, write_parts: WriteParts, train: Train, size_hw: tuple[int, int], good: int, batch_size: int
) -> None:
    spec = {"size_hw": size_hw, "colour_order": "rgb", "resize": "area+linear", "roi_xywh": None}
    data = write_parts(tmp_path / "parts", good=good)
    complaint = (
        "batches of one image of 32x32 give batch norm a single value; use a larger --image-size or --batch-size"
    )
    with pytest.raises(UsageError, match=complaint):
        train(data, tmp_path / "run", input=spec, batch_size=batch_size)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size_hw", "good", "batch_size"), [((64, 64), 2, 1), ((32, 32), 5, 2)], ids=["two-parts", "32x32"]
)
def test_the_smallest_trainings_that_can_work(
    tmp_path: Path, write_parts: WriteParts, train: Train, size_hw: tuple[int, int], good: int, batch_size: int
) -> None:
    spec = {"size_hw": size_hw, "colour_order": "rgb", "resize": "area+linear", "roi_xywh": None}
    data = write_parts(tmp_path / "parts", good=good)
    train(data, tmp_path / "run", input=spec, batch_size=batch_size, epochs=1)
    assert open_run(tmp_path / "run").record.config.batch_size == batch_size


def test_the_position_head_is_fitted_on_the_training_parts(parts_folder: Path, tmp_path: Path, train: Train) -> None:
    train(parts_folder, tmp_path / "run", head="position", epochs=1)
    run = open_run(tmp_path / "run")
    head = run.detector.head
    assert head is not None
    paths = [parts_folder / name for name in run.record.train_images]
    frames = read_frames(parts_folder, paths, run.record.config.input)
    cpu = torch.device("cpu")
    teacher = quick_teacher(run.detector.teacher, frames.frames_u8.shape[1:3], cpu)
    features = TeacherFeatures(teacher, frames.frames_u8, cpu, budget_bytes=0)
    with torch.no_grad():
        trained = quick(run.detector, features.size_hw, cpu)
        chunks = [trained.distances(batch) for batch in features.in_order()]
    for i, level in enumerate(zip(*chunks, strict=True)):
        assert torch.equal(getattr(head, f"mean{i}"), torch.cat(level).mean(dim=0, keepdim=True))
        assert not torch.allclose(getattr(head, f"scale{i}"), torch.ones(()))


def test_the_residual_head_is_fitted_and_resumed_to_the_bit(
    parts_folder: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whitening is what the student learns to restore, so a resumed run must find the same again."""
    settings: dict[str, object] = {"head": "residual", "loss": "squared", "epochs": 2}
    history = train(parts_folder, tmp_path / "whole", **settings)
    assert history[1].loss < history[0].loss
    stop = Interrupter(rdedge_train.fit.save_state, 1, after=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rdedge_train.fit, "save_state", stop)
        train(parts_folder, tmp_path / "resumed", **settings)
    train(parts_folder, tmp_path / "resumed", **settings)
    whole, resumed = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert whole["head.distance.0.directions"].dtype == torch.float16
    assert not torch.allclose(whole["head.whitening.1.matrix"][:, :, 0, 0], torch.eye(112))
    run = open_run(tmp_path / "whole")
    anomaly_map, _ = run.detector.predict(torch.from_numpy(run.held_out_frames()))
    assert 0.1 < float(anomaly_map.mean()) < 100  # deviations, not zeros: the head was fitted


@pytest.mark.parametrize("model", ["edge-lite0", "resnet18"])
def test_the_plain_head_has_no_statistics(parts_folder: Path, tmp_path: Path, train: Train, model: str) -> None:
    train(parts_folder, tmp_path / "run", model=model, head="plain", teacher_weights="random:0", epochs=1)
    assert open_run(tmp_path / "run").detector.head is None
    assert not [key for key in load_file(tmp_path / "run" / WEIGHTS_FILE) if key.startswith("head")]


def test_the_schedule_runs_over_all_steps_also_when_resumed(
    parts_folder: Path,
    interrupted_run: Path,
    copied: Copied,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    set_rate = rdedge_train.fit.set_learning_rate

    def noted(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> None:
        asked.append((step, steps))
        set_rate(optimiser, config, step, steps)

    monkeypatch.setattr(rdedge_train.fit, "set_learning_rate", noted)
    train(parts_folder, tmp_path / "run")
    train(parts_folder, copied(interrupted_run))
    total = 2 * STEPS_AN_EPOCH
    assert asked == [(step, total) for step in (*range(total), *range(STEPS_AN_EPOCH, total))]


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
def test_batches_hold_every_image_once_in_nearly_equal_parts(n: int, batch_size: int) -> None:
    epoch = list(batches(n, batch_size, 5, 2))
    assert sorted(np.concatenate(epoch).tolist()) == list(range(n))
    sizes = [len(b) for b in epoch]
    assert len(sizes) == math.ceil(n / batch_size)
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size


def test_the_order_is_drawn_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(batches(50, 16, seed, epoch))).tolist()

    torch.manual_seed(1)
    first = order(3, 4)
    torch.manual_seed(2)
    assert order(3, 4) == first
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(1, 5)}) == 16


@pytest.mark.parametrize(
    ("model", "expected"),
    [("edge-lite0", [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0]), ("resnet18", [1.0] * 5)],
    ids=["cosine", "constant"],
)
def test_learning_rate(make_config: MakeConfig, model: str, expected: list[float]) -> None:
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=9.0)
    config = make_config(model=model)
    rates = []
    for step in (0, 25, 50, 75, 100):
        set_learning_rate(optimiser, config, step, 100)
        rates.append(optimiser.param_groups[0]["lr"] / config.learning_rate)
    assert rates == pytest.approx(expected, abs=1e-12)
