"""A run on disk: what is written, and that every kind of damage is refused by name, in one line, with a remedy."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rdedge.errors import RunError
from rdedge_train.model import Detector
from rdedge_train.run_folder import (
    HELD_OUT_FILE,
    RUN_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    EpochRecord,
    load_state,
    open_run,
    read_record,
)

Copied = Callable[[Path], Path]
Damage = Callable[[Path], object]
TRAIN_AGAIN = "train again with `rdedge train` into a new folder"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data))


def with_config(**fields: object) -> Callable[[dict[str, object]], object]:
    def change(record: dict[str, object]) -> None:
        config = record["config"]
        assert isinstance(config, dict)
        config.update(fields)

    return change


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def cut(path: Path, bytes_left: int) -> None:
    path.write_bytes(path.read_bytes()[:bytes_left])


def write_archive(path: Path) -> None:
    with path.open("wb") as f:
        np.savez(f, frames=np.zeros((2, 64, 64, 3), np.uint8))


def resume(folder: Path) -> list[EpochRecord]:
    """What the training loop does with a state file."""
    config = read_record(folder).config
    restorer = Detector(config.model, config.input.size_hw, ocbe=config.ocbe, head=config.head).restorer
    return load_state(folder, restorer, torch.optim.Adam(restorer.parameters()))


def expect_refusal(act: Callable[[], object], path: Path, complaint: str) -> None:
    with pytest.raises(RunError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert complaint in message
    assert "\n" not in message
    assert caught.value.remedy


def test_a_finished_run_is_read_as_it_was_written(tiny_run: Path) -> None:
    assert sorted(p.name for p in tiny_run.iterdir()) == sorted([RUN_FILE, HELD_OUT_FILE, WEIGHTS_FILE])
    run = open_run(tiny_run)
    assert [e.epoch for e in run.history] == [1, 2]
    assert run.record.config.model == "edge-lite0"
    assert run.held_out_frames().shape == (2, 64, 64, 3)
    assert not run.detector.training
    stored = load_file(tiny_run / WEIGHTS_FILE)
    assert stored.keys() == run.detector.state_dict().keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in run.detector.state_dict().items())


def test_an_interrupted_run_is_not_exported(interrupted_run: Path) -> None:
    complaint = "training is not finished (weights.safetensors is missing); run the same `rdedge train` command again"
    expect_refusal(lambda: open_run(interrupted_run), interrupted_run, complaint)
    assert [e.epoch for e in resume(interrupted_run)] == [1]


RUN_FILE_DAMAGE: dict[str, tuple[Damage, str]] = {
    "missing": (lambda p: p.unlink(), "cannot be read (No such file or directory); name a folder that `rdedge train"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read (Is a directory)"),
    "empty": (lambda p: cut(p, 0), "Input data was truncated"),
    "truncated": (lambda p: cut(p, 200), "Input data was truncated"),
    "not UTF-8": (lambda p: p.write_bytes(b'{"config": "\xff"}'), ""),
    "nested too deep": (lambda p: p.write_bytes(b"[" * 100_000), ""),
    "another object": (lambda p: p.write_bytes(b"[]"), "Expected `object`, got `array`"),
    "unknown key": (lambda p: edit_json(p, lambda d: d.update(colour="red")), "unknown field `colour`"),
    "missing key": (lambda p: edit_json(p, lambda d: d.pop("train_sha256")), "missing required field `train_sha256`"),
    "unknown setting": (lambda p: edit_json(p, with_config(momentum=0.9)), "unknown field `momentum`"),
    "setting out of range": (lambda p: edit_json(p, with_config(epochs=0)), "Expected `int` >= 1"),
    "unknown model": (lambda p: edit_json(p, with_config(model="edge-lite9")), "no model 'edge-lite9'"),
}


@pytest.mark.parametrize("kind", RUN_FILE_DAMAGE)
def test_damaged_run_file(tiny_run: Path, copied: Copied, kind: str) -> None:
    folder = copied(tiny_run)
    damage, complaint = RUN_FILE_DAMAGE[kind]
    damage(folder / RUN_FILE)
    expect_refusal(lambda: open_run(folder), folder / RUN_FILE, complaint)


TENSOR_DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda p: cut(p, 0), "damaged or not ours"),
    "truncated header": (lambda p: cut(p, 1000), "damaged or not ours"),
    "truncated data": (lambda p: cut(p, p.stat().st_size - 1), "damaged or not ours"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "damaged or not ours"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "damaged or not ours"),
    "foreign": (lambda p: save_file({"x": torch.zeros(3)}, p), "damaged or not ours (KeyError: 'history')"),
    "history of something else": (lambda p: save_file({"x": torch.zeros(3)}, p, {"history": "{}"}), "damaged or not"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Payload(p.parent / "ran"))), "damaged or not ours"),
    "torch pickle": (lambda p: torch.save(Payload(p.parent / "ran"), p), "damaged or not ours"),
    "NaN": (lambda p: edit_tensors(p, lambda t: t[CONVOLUTION].fill_(torch.nan)), "holds NaN or infinity"),
    "infinity": (lambda p: edit_tensors(p, lambda t: t[CONVOLUTION][0].fill_(torch.inf)), "holds NaN or infinity"),
    "lacks a tensor": (lambda p: edit_tensors(p, lambda t: t.pop(CONVOLUTION)), "does not fit the run's model"),
    "other shape": (lambda p: edit_tensors(p, lambda t: t.update({CONVOLUTION: torch.ones(2)})), "does not fit the"),
    "extra tensor": (lambda p: edit_tensors(p, lambda t: t.update({"restorer.x": torch.ones(2)})), "does not fit the"),
}
CONVOLUTION = "restorer.bottleneck.coarse.0.weight"
READERS = {WEIGHTS_FILE: open_run, STATE_FILE: resume}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", TENSOR_DAMAGE)
def test_damaged_weights_and_state(tiny_run: Path, interrupted_run: Path, copied: Copied, name: str, kind: str) -> None:
    folder = copied(tiny_run if name == WEIGHTS_FILE else interrupted_run)
    damage, complaint = TENSOR_DAMAGE[kind]
    damage(folder / name)
    expect_refusal(lambda: READERS[name](folder), folder / name, complaint)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("key", ["optimiser.0.step", "optimiser.3.exp_avg", "optimiser.5.exp_avg_sq"])
@pytest.mark.parametrize("change", ["gone", "another shape"])
def test_state_of_another_optimiser(interrupted_run: Path, copied: Copied, key: str, change: str) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(key)
        if change == "another shape":
            tensors[key] = torch.ones(7)

    folder = copied(interrupted_run)
    edit_tensors(folder / STATE_FILE, spoil)
    index = key.split(".")[1]
    complaint = f"does not fit the run's optimiser (parameter {index}); {TRAIN_AGAIN}"
    expect_refusal(lambda: resume(folder), folder / STATE_FILE, complaint)


HELD_OUT_DAMAGE: dict[str, tuple[Damage, str]] = {
    "missing": (lambda p: p.unlink(), "cannot be read ([Errno 2] No such file or directory"),
    "empty": (lambda p: cut(p, 0), "cannot be read"),
    "truncated header": (lambda p: cut(p, 60), "cannot be read"),
    "truncated data": (lambda p: cut(p, 5000), "cannot be read"),
    "other type": (lambda p: np.save(p, np.zeros((2, 64, 64, 3), np.int8)), "expected uint8 (2, 64, 64, 3), got int8"),
    "other shape": (lambda p: np.save(p, np.zeros((3, 64, 64, 3), np.uint8)), "got uint8 (3, 64, 64, 3)"),
    "pickled": (lambda p: np.save(p, np.array([Payload(p.parent / "ran")]), allow_pickle=True), "cannot be read"),
    "bare pickle": (lambda p: p.write_bytes(pickle.dumps(Payload(p.parent / "ran"))), "cannot be read"),
    "archive": (write_archive, "cannot be read"),
    "larger than memory": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"(2, 64, 64, 3), ", b"(9999999999999,)")),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", HELD_OUT_DAMAGE)
def test_damaged_held_out_frames(tiny_run: Path, copied: Copied, kind: str) -> None:
    folder = copied(tiny_run)
    damage, complaint = HELD_OUT_DAMAGE[kind]
    damage(folder / HELD_OUT_FILE)
    expect_refusal(open_run(folder).held_out_frames, folder / HELD_OUT_FILE, complaint)
    assert not (folder / "ran").exists()


def test_the_payload_of_these_tests_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_any_flipped_byte_of_the_held_out_header_is_refused(tiny_run: Path, copied: Copied) -> None:
    folder = copied(tiny_run)
    run, path = open_run(folder), folder / HELD_OUT_FILE
    whole = path.read_bytes()
    header_bytes = len(whole) - 2 * 64 * 64 * 3
    is_blank = [whole[i : i + 1].isspace() for i in range(header_bytes)]  # padding may hold any blank
    for position in range(header_bytes):
        for flip in (0xFF, 0x01):
            spoilt = bytearray(whole)
            spoilt[position] ^= flip
            path.write_bytes(spoilt)
            if flip == 0xFF or not is_blank[position]:
                expect_refusal(run.held_out_frames, path, "")


@pytest.mark.parametrize("name", READERS)
def test_flipped_bytes_of_a_tensor_header_never_crash(
    tiny_run: Path, interrupted_run: Path, copied: Copied, name: str
) -> None:
    """The header's length is always found out; other flips may hit a digit of the history, which stays readable."""
    folder = copied(tiny_run if name == WEIGHTS_FILE else interrupted_run)
    path = folder / name
    whole = path.read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    positions = [*range(8), *np.random.default_rng(11).integers(8, header_bytes, 24).tolist()]
    refused = 0
    for position in positions:
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x01
        path.write_bytes(spoilt)
        try:
            READERS[name](folder)
        except RunError as exc:
            refused += 1
            assert str(exc).startswith(f"{path}: ") and "\n" not in str(exc)
        else:
            assert position >= 8
    assert refused >= 20
