"""SIGKILL at random moments of training and export: never a corrupt run or bundle, and the end result is the same.

Children are forked from a server that has imported everything, so that a kill falls into the work, not into imports.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.contract import CONTRACT_FILE
from rdedge_train.run_folder import RUN_FILE, WEIGHTS_FILE, open_run, read_record

KILLS = 20
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def forked() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rdedge_train.fit", "rdedge_train.train_verb", "rdedge_export.export_verb", "onnxscript"]
    )
    return context


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_to_the_end(context: ForkServerContext, command: list[str]) -> float:
    """Seconds it took."""
    started_s = time.monotonic()
    child = context.Process(target=main, args=(command,))
    child.start()
    child.join(TIMEOUT_S)
    assert child.exitcode == 0
    return time.monotonic() - started_s


def kill(context: ForkServerContext, command: list[str], *, after_s: float, folder: Path, at_a_write: bool) -> bool:
    """Start, kill after a while or, from then on, as soon as something half-written is there; False if it had ended."""
    child = context.Process(target=main, args=(command,))
    child.start()
    child.join(after_s)
    while at_a_write and child.is_alive() and not any(folder.rglob(".*.partial-*")):
        time.sleep(0.0005)
    was_alive = child.is_alive()
    child.kill()
    child.join(TIMEOUT_S)
    return was_alive


def killed_often(
    context: ForkServerContext, command: list[str], *, duration_s: float, out: Path, check: Callable[[Path], None]
) -> None:
    """Kill at ``KILLS`` random moments, every other one in the middle of a write; begin afresh whenever it got done."""
    rng = random.Random(1)
    kills = finished = half_written = 0
    longest_s = 0.7 * duration_s  # a resumed run has less to do
    while kills < KILLS:
        after_s = rng.uniform(0.0, longest_s)
        was_killed = kill(context, command, after_s=after_s, folder=out.parent, at_a_write=kills % 2 == 0)
        if out.exists():
            check(out)
        kills += was_killed
        half_written += any(out.parent.rglob(".*.partial-*"))
        if not was_killed:
            assert any((out / name).exists() for name in (WEIGHTS_FILE, CONTRACT_FILE)), "it ended without finishing"
            finished += 1
            longest_s *= 0.8  # the machine is less busy than when the duration was measured
            assert finished < 2 * KILLS
            out.rename(out.with_name(f"finished{finished}"))
    assert half_written > 0


def test_training_resumes_to_the_same_weights(forked: ForkServerContext, parts_folder: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        settings = ["--image-size", "64", "--epochs", "8", "--batch-size", "4"]
        return ["train", str(parts_folder), "--out", str(out), *settings]

    def check(run: Path) -> None:
        if (run / RUN_FILE).exists():
            assert read_record(run).config.epochs == 8
        if (run / WEIGHTS_FILE).exists():
            assert open_run(run).history == open_run(whole).history

    whole, out = tmp_path / "whole", tmp_path / "killed" / "run"
    out.parent.mkdir()
    duration_s = run_to_the_end(forked, command(whole))
    killed_often(forked, command(out), duration_s=duration_s, out=out, check=check)
    run_to_the_end(forked, command(out))
    assert sha256(out / WEIGHTS_FILE) == sha256(whole / WEIGHTS_FILE)
    assert open_run(out).history == open_run(whole).history
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_export_leaves_a_whole_bundle_or_none(forked: ForkServerContext, tiny_run: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return ["export", str(tiny_run), "--out", str(out)]

    def check(bundle: Path) -> None:
        assert open_bundle(bundle).contract.precisions["fp32"].parity.frames > 0

    whole, out = tmp_path / "whole", tmp_path / "killed" / "bundle"
    out.parent.mkdir()
    duration_s = run_to_the_end(forked, command(whole))
    killed_often(forked, command(out), duration_s=duration_s, out=out, check=check)
    run_to_the_end(forked, command(out))
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []
    assert sha256(out / "model.onnx") == sha256(whole / "model.onnx")
    assert open_bundle(out).contract.model == open_bundle(whole).contract.model
