"""A board whose disk is really full, as a small tmpfs is: the copy or the switch fails with one line, the line goes on,
nothing half-written stays, and the same deploy succeeds once there is room. The engine build: test_engine_deploy.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from boards import BoardSite, Sshd
from camera_servers import MjpegServer
from small_disks import SIZE_MB, fill_command, small_disk

from rdedge.bundle import open_bundle
from rdedge.deploy.store import version_of

MakeBundle = Callable[..., Path]
pytestmark = pytest.mark.mounts


@pytest.fixture
def full_board(tmp_path: Path, own_host: Sshd, camera: MjpegServer) -> Iterator[BoardSite]:
    """The lines' bundles lie on a small disk, the line's results elsewhere."""
    (tmp_path / "lines").mkdir()
    with small_disk(tmp_path / "lines") as is_mounted:
        if not is_mounted:
            pytest.skip("needs root, who may mount a small disk")
        site = BoardSite(tmp_path, own_host, camera)
        try:
            yield site
        finally:
            site.close()
        assert site.holes == []


def check_failed(board: BoardSite, done: subprocess.CompletedProcess[str], name: str, uptime_s: float) -> str:
    """One line, the old bundle on a line that was not even restarted, and nothing of the new one."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("rdedge: error: ") and done.stderr.count("\n") == 1, done.stderr
    now = board.seen()
    assert now is not None and now.uptime_s > uptime_s
    assert board.store.current == name and board.store.names() == [name]
    left = {path.name for path in board.store.folder.iterdir()}
    assert left == {"current", "versions", "state.json"}, left
    return done.stderr


def uptime(board: BoardSite) -> float:
    now = board.seen()
    assert now is not None
    return now.uptime_s


def check_succeeds(board: BoardSite, bundle: Path) -> None:
    done = board.deploy(bundle)
    assert done.returncode == 0, done.stderr
    assert board.store.current == version_of(bundle)
    assert board.judges_by() == open_bundle(bundle).contract.contract_sha256


@pytest.mark.parametrize("tool", ["rsync", "ssh"])
def test_the_disk_fills_up_while_the_bundle_is_copied(
    full_board: BoardSite, own_host: Sshd, make_bundle: MakeBundle, tool: str
) -> None:
    """After the order, which finds room, and before the files."""
    board = full_board
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uptime_s = uptime(board)
    filler = board.store.folder.parent / "filler"
    program = own_host.bin / "rdedge"
    kept = program.read_text()
    if tool == "rsync":
        own_host.program("rsync", f'{fill_command(filler)}; PATH=/usr/bin:/bin exec rsync "$@"')
    else:
        wait = f"until test -e {board.store.folder}/incoming; do sleep 0.02; done"
        feed = f'{{ read -r order; echo "$order"; {wait}; {fill_command(filler)}; cat; }}'
        program.write_text(kept.replace("exec", f"{feed} | PATH=/nowhere exec"))
    error = check_failed(board, board.deploy(new), name, uptime_s)
    assert "No space left on device" in error, error
    assert filler.stat().st_size > (SIZE_MB - 1) << 20
    filler.unlink()
    (own_host.bin / "rsync").unlink(missing_ok=True)
    program.write_text(kept)
    check_succeeds(board, new)


@pytest.mark.parametrize("what", ["bytes", "files"])
def test_the_disk_is_full_when_the_line_is_to_be_switched(
    full_board: BoardSite, make_bundle: MakeBundle, what: Literal["bytes", "files"]
) -> None:
    """At the last moment before it."""
    board = full_board
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uptime_s = uptime(board)
    filler = board.store.folder.parent / "filler"
    done = board.deploy(new, "--selftest", fill_command(filler, what))
    error = check_failed(board, done, name, uptime_s)
    full = board.store.current_link if what == "files" else board.store.folder / "state.json"
    assert f"{full}: No space left on device" in error and f"the line goes on with {name}" in error, error
    assert "self-test: passed" in done.stdout and "switched to" not in done.stdout
    subprocess.run(["rm", "-r", filler], check=True)
    check_succeeds(board, new)


def test_the_disk_fills_up_while_the_line_is_watched(full_board: BoardSite, make_bundle: MakeBundle) -> None:
    """The way back takes no room; what came of it cannot be written down."""
    board = full_board
    old, bad = make_bundle("old"), make_bundle("bad", rejects=True)
    name = board.lay(old)
    filler = board.store.folder.parent / "filler"
    fills = f"{board.restart} && {{ test -e {filler} || {fill_command(filler, 'files')}; }}"
    done = board.deploy(bad, "--restart", fills, watch_s=60)
    assert done.returncode == 2 and f"the line is back on {name}" in done.stderr, done.stdout + done.stderr
    assert board.store.current == name and board.judges_by() == open_bundle(old).contract.contract_sha256
    assert board.store.names() == [name]


def test_a_bundle_that_did_well_on_a_disk_that_filled_up_meanwhile(
    full_board: BoardSite, make_bundle: MakeBundle
) -> None:
    """It stays, as it is better than a stop; that it is proved cannot be written down, and this is said."""
    board = full_board
    old, new = make_bundle("old"), make_bundle("new")
    board.lay(old)
    filler = board.store.folder.parent / "filler"
    fills = f"{board.restart} && {fill_command(filler)}"
    done = board.deploy(new, "--restart", fills)
    assert done.returncode == 2 and "but this could not be written down (No space left on device)" in done.stderr
    assert board.store.current == version_of(new)
    assert "is being watched on the line" in board.store.state().last
    filler.unlink()
    check_succeeds(board, new)
    assert board.store.state().proved == (version_of(new), version_of(old))


def test_a_disk_that_is_full_already(full_board: BoardSite, make_bundle: MakeBundle) -> None:
    board = full_board
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uptime_s = uptime(board)
    filler = board.store.folder.parent / "filler"
    subprocess.run(fill_command(filler), shell=True, check=True)
    check_failed(board, board.deploy(new), name, uptime_s)
    assert board.deploy("--status").returncode == 0, "looking takes no room"
    filler.unlink()
    check_succeeds(board, new)
