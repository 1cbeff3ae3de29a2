"""SIGKILL at 20 random moments of a deploy, of the workstation's process and of the board's: the line has a whole
bundle at every moment, the old one or the new one, and a later deploy mends what was left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from boards import WAIT_S, BoardSite

from rdedge.bundle import open_bundle
from rdedge.deploy.store import version_of
from rdedge.errors import DeployError

MakeBundle = Callable[..., Path]
KILLS = 20

pytestmark = pytest.mark.slow


def test_never_a_line_without_a_bundle(board: BoardSite, make_bundle: MakeBundle) -> None:
    bundles = [make_bundle("one"), make_bundle("two")]
    names = [version_of(bundle) for bundle in bundles]
    board.lay(bundles[0])
    started_s = time.monotonic()
    assert board.deploy(bundles[1], watch_s=1).returncode == 0
    length_s = time.monotonic() - started_s
    rng = random.Random(5)
    outcomes = []
    for number in range(KILLS):
        target = bundles[0] if board.store.current == names[1] else bundles[1]
        before = board.store.current
        process = subprocess.Popen(
            board.command(target, watch_s=1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, 1.0) * length_s)
        for pid in receivers(board) if number % 2 else [process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(WAIT_S)
        wait_until_idle(board)
        assert board.store.current in names, "the old one or the new one"
        outcomes.append(board.store.current == before)
    assert 0 < sum(outcomes) < KILLS, f"moments before and after the switch: {outcomes}"
    target = bundles[0] if board.store.current == names[1] else bundles[1]
    last = board.deploy(target)
    assert last.returncode == 0, last.stderr
    assert board.store.current == version_of(target)
    assert board.judges_by() == open_bundle(target).contract.contract_sha256
    assert sorted(path.name for path in board.store.folder.iterdir()) == ["current", "state.json", "versions"]
    assert set(board.store.names()) <= set(names), "what killed deploys left is gone"
    assert board.looks > 100


def receivers(board: BoardSite) -> list[int]:
    """Processes of the board's end: those whose parents lead to the sshd of this test."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            environment = (folder / "environ").read_bytes() if b"receive" in words else b""
            if f"PATH={board.host.bin}:".encode() in environment:
                found.append(int(folder.name))
    return found


def wait_until_idle(board: BoardSite) -> None:
    """A board that was left alone finishes by itself; one that was killed has let go of the lock."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        with suppress(DeployError), board.store.locked("the test"):
            return
        time.sleep(0.1)
    raise AssertionError("the lock is still held")
