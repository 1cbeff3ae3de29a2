"""Boards that cannot be reached, are not who they were, are busy or full: one line, and the line goes on as before."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import WAIT_S, BoardSite, Sshd
from free_port import free_port

from rdedge.deploy.messages import Order, Refused
from rdedge.deploy.ssh import Board
from rdedge.deploy.store import version_of
from rdedge.errors import UsageError

MakeBundle = Callable[..., Path]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("rdedge: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_board_that_is_away(board: BoardSite, make_bundle: MakeBundle) -> None:
    command = board.command(make_bundle("new"))
    command[command.index("--ssh") + 1] = board.host.ssh.replace(str(board.host.port), str(free_port()), 1)
    error = refusal(subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S))
    assert "Connection refused" in error and "make `ssh " in error


def test_a_board_with_another_host_key(board: BoardSite, own_host: Sshd, make_bundle: MakeBundle) -> None:
    board.host = own_host
    own_host.know((own_host.folder / "user_key.pub").read_text())
    assert "Host key verification failed" in refusal(board.deploy(make_bundle("new")))
    (own_host.folder / "known_hosts").write_text("")
    assert "Host key verification failed" in refusal(board.deploy(make_bundle("new2"))), "an unknown one is not trusted"


def test_a_board_without_rdedge(board: BoardSite, own_host: Sshd, make_bundle: MakeBundle) -> None:
    (own_host.bin / "rdedge").rename(own_host.bin / "elsewhere")
    board.host = own_host
    assert "say with --rdedge where it is" in refusal(board.deploy(make_bundle("new")))


def test_a_board_whose_rdedge_is_another(board: BoardSite, own_host: Sshd, make_bundle: MakeBundle) -> None:
    own_host.program("rdedge", "echo welcome; cat >/dev/null")
    board.host = own_host
    assert "'welcome', which is no answer" in refusal(board.deploy(make_bundle("new")))


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b", "host:2222", "host:/tmp", "a\nb"])
def test_what_is_no_address_reaches_no_ssh(address: str) -> None:
    with pytest.raises(UsageError, match="no board's address"):
        Board(address)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("", "has no [metrics]"), ("[metrics]", "has no bundle of its own"), ("x = 1", "unknown key")],
    ids=["no metrics", "no bundle", "broken"],
)
def test_lines_that_no_deploy_can_serve(
    board: BoardSite, make_bundle: MakeBundle, settings: str, expected: str
) -> None:
    camera = '[[camera]]\nname = "top"\nuri = "http://127.0.0.1:9/"\npolicy = "latest"\n'
    named = 'bundle = "lines/press/current"\n' if settings != "[metrics]" else ""
    own = 'bundle = "b"\n' if not named else ""
    board.line_file.write_text(f'{named}out = "out"\n{settings}\n{camera}{own}')
    assert expected in refusal(board.deploy(make_bundle("new")))


def test_a_bundle_laid_there_by_hand_is_not_touched(board: BoardSite, make_bundle: MakeBundle) -> None:
    board.store.current_link.mkdir(parents=True)
    (board.store.current_link / "mine").write_text("")
    assert "was not put there by `rdedge deploy`" in refusal(board.deploy(make_bundle("new")))
    assert (board.store.current_link / "mine").exists()


def test_one_deploy_at_a_time(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    board.lay(old)
    with board.store.locked("anna@lab"):
        error = refusal(board.deploy(new))
        assert "another deploy to this board is under way, by anna@lab, process " in error
        assert refusal(board.deploy("--rollback")) == error
        assert board.deploy("--status").returncode == 0, "looking is no deploy"
    assert board.deploy(new).returncode == 0


def test_a_disk_that_has_no_room(board: BoardSite, make_bundle: MakeBundle) -> None:
    name = board.lay(make_bundle("old"))
    order = Order(
        protocol=1, action="deploy", owner="me", line=str(board.line_file), version="0" * 16, size_bytes=1 << 50
    )
    with Board(board.host.address, ssh=board.host.ssh, rdedge=str(board.host.bin / "rdedge")).ordered(order) as talk:
        answer = talk.answer()
    assert isinstance(answer, Refused) and " MB of disk are free" in answer.problem
    assert board.store.current == name


@pytest.mark.parametrize("tool", ["rsync", "ssh"])
def test_a_file_that_cannot_grow_while_copying(
    board: BoardSite, make_bundle: MakeBundle, tmp_path: Path, tool: str
) -> None:
    """No file on this host grows beyond 64 kB."""
    old, new = make_bundle("old"), make_bundle("new", graph=bytes(1 << 20))
    name = board.lay(old)
    (tmp_path / "full").mkdir()
    host = board.host = Sshd(tmp_path / "full", max_file_bytes=65536)
    try:
        if tool == "ssh":
            host.program("rdedge", (host.bin / "rdedge").read_text().replace("exec", "PATH=/nowhere exec"))
        error = refusal(board.deploy(new))
    finally:
        host.close()
    assert "File too large" in error and f"the line goes on with {name}" in error
    assert board.store.current == name and board.store.names() == [name]
    wait_until_gone(board.store.folder / "incoming")


def test_a_workstation_that_goes_leaves_the_board_to_finish(board: BoardSite, make_bundle: MakeBundle) -> None:
    """Killed in the first minute: the board comes to its own verdict, be it good or bad."""
    old, bad = make_bundle("old"), make_bundle("bad", rejects=True)
    name = board.lay(old)
    process = subprocess.Popen(board.command(bad, watch_s=60), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        while "switched to" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    process.wait()
    deadline_s = time.monotonic() + WAIT_S
    while "allowed are 50%" not in board.store.state().last:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert (board.store.current, board.store.state().proved) == (name, (name,))
    assert version_of(bad) in board.store.state().last


def wait_until_gone(path: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
