"""A disk that fills up while training, exporting or reporting: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import rdedge_export.bundle_writer
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge_train.run_folder import HELD_OUT_FILE, RUN_FILE, STATE_FILE, WEIGHTS_FILE, open_run

DiskOf = Callable[[int], AbstractContextManager[None]]
Copied = Callable[[Path], Path]
Snapshot = Callable[[Path], dict[str, str]]

SETTINGS = ["--image-size", "64", "--batch-size", "4", "--epochs", "2"]  # those of tiny_run


def full(path: Path) -> str:
    return f"rdedge: error: {path}: File too large; check the path, its permissions and the disk's space\n"


@pytest.mark.parametrize(
    ("size_bytes", "there", "named"),
    [
        (100, [], HELD_OUT_FILE),
        (24_000, [], HELD_OUT_FILE),
        (24_800, [HELD_OUT_FILE, RUN_FILE], STATE_FILE),
        (1_000_000, [HELD_OUT_FILE, RUN_FILE], STATE_FILE),
    ],
    ids=["nothing-fits", "held-out-parts-do-not-fit", "state-does-not-fit", "state-fits-in-part"],
)
def test_training_resumes_when_there_is_space_again(
    parts_folder: Path,
    tiny_run: Path,
    tmp_path: Path,
    disk_of: DiskOf,
    capsys: pytest.CaptureFixture[str],
    size_bytes: int,
    there: list[str],
    named: str,
) -> None:
    command = ["train", str(parts_folder), "--out", str(tmp_path / "run"), *SETTINGS]
    with disk_of(size_bytes):
        assert main(command) == 2
    assert capsys.readouterr().err == full(tmp_path / "run" / named)
    assert sorted(os.listdir(tmp_path / "run")) == there
    assert main(command) == 0
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == (tiny_run / WEIGHTS_FILE).read_bytes()


def test_no_space_for_the_next_state_keeps_the_last(
    parts_folder: Path,
    interrupted_run: Path,
    tiny_run: Path,
    copied: Copied,
    snapshot: Snapshot,
    disk_of: DiskOf,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(interrupted_run)
    before = snapshot(run)
    command = ["train", str(parts_folder), "--out", str(run), *SETTINGS]
    with disk_of((run / STATE_FILE).stat().st_size - 1):
        assert main(command) == 2
    assert capsys.readouterr().err == full(run / STATE_FILE)
    assert snapshot(run) == before
    assert main(command) == 0
    assert open_run(run).history == open_run(tiny_run).history


@pytest.mark.parametrize("size_bytes", [0, 100_000], ids=["nothing-fits", "graph-fits-in-part"])
def test_export_leaves_nothing(
    tiny_run: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    disk_of: DiskOf,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int,
) -> None:
    graph = (tiny_bundle / "model.onnx").read_bytes()
    monkeypatch.setattr(rdedge_export.bundle_writer, "onnx_graph", lambda detector, spec: graph)
    command = ["export", str(tiny_run), "--out", str(tmp_path / "bundle")]
    with disk_of(size_bytes):
        assert main(command) == 2
    assert capsys.readouterr() == ("", full(tmp_path / "bundle"))
    assert os.listdir(tmp_path) == []
    assert main(command) == 0
    assert open_bundle(tmp_path / "bundle").contract.precisions["fp32"].parity.frames == 2


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("size_bytes", [0, 600], ids=["nothing-fits", "fits-in-part"])
def test_evaluation_leaves_nothing(
    tiny_bundle: Path,
    parts_folder: Path,
    tmp_path: Path,
    disk_of: DiskOf,
    capsys: pytest.CaptureFixture[str],
    size_bytes: int,
    option: str,
) -> None:
    with disk_of(size_bytes):
        assert main(["evaluate", str(tiny_bundle), str(parts_folder), option, str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == full(tmp_path / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--triton", "--deepstream"])
@pytest.mark.parametrize("size_bytes", [0, 300, 100_000], ids=["nothing-fits", "readme-does-not-fit", "graph-in-part"])
def test_a_folder_for_a_server_leaves_nothing(
    tiny_bundle: Path,
    tmp_path: Path,
    disk_of: DiskOf,
    capsys: pytest.CaptureFixture[str],
    size_bytes: int,
    option: str,
) -> None:
    with disk_of(size_bytes):
        assert main(["export", str(tiny_bundle), option, str(tmp_path / "served")]) == 2
    assert capsys.readouterr() == ("", full(tmp_path / "served"))
    assert os.listdir(tmp_path) == []
