"""A bundle onto a board: what does goes into force, what fails leaves the line on the bundle it had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from boards import BoardSite, Sshd

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.deploy.store import version_of

MakeBundle = Callable[..., Path]


def sha_of(bundle: Path) -> str:
    return open_bundle(bundle).contract.contract_sha256


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failed deploy."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("rdedge: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def check_unchanged(board: BoardSite, name: str, bundle: Path) -> None:
    """The line judges on with the old bundle, and nothing of the new one is left."""
    assert board.store.current == name
    assert board.judges_by() == sha_of(bundle)
    assert not (board.store.folder / "incoming").exists()


def test_a_good_bundle_comes_into_force_and_goes_back(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    first = board.deploy(old)
    assert first.returncode == 0, first.stderr
    board.watch_link()
    assert board.judges_by() == sha_of(old)
    second = board.deploy(new)
    assert second.returncode == 0, second.stderr
    assert "files sent by rsync" in second.stdout and f"version {version_of(new)} is on the line: " in second.stdout
    assert board.judges_by() == sha_of(new)
    assert board.store.state().proved == (version_of(new), version_of(old))
    again = board.deploy(new)
    assert again.returncode == 0 and "on the line already" in again.stdout and "sent by" not in again.stdout
    back = board.deploy("--rollback")
    assert back.returncode == 0, back.stderr
    assert (board.store.current, board.judges_by()) == (version_of(old), sha_of(old))
    assert board.store.state().proved == (version_of(old),)
    assert "no other proved version" in refusal(board.deploy("--rollback"))


def test_status_says_what_the_line_runs(board: BoardSite, make_bundle: MakeBundle) -> None:
    old = make_bundle("old")
    name = board.lay(old)
    done = board.deploy("--status")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["line"], report["current"], report["is_proved"]) == ("press", name, True)
    assert report["bundle"]["contract_sha256"] == sha_of(old)
    assert report["health"]["is_turning"] and list(report["health"]["thresholds"]) == ["top"]


def test_only_the_newest_proved_versions_are_kept(board: BoardSite, make_bundle: MakeBundle) -> None:
    names = [board.lay(make_bundle("0"))]
    for number in (1, 2):
        bundle = make_bundle(str(number))
        assert board.deploy(bundle, "--keep", 2).returncode == 0
        names.append(version_of(bundle))
    assert board.store.names() == sorted(names[1:])
    assert board.store.state().proved == (names[2], names[1])


def test_a_bundle_that_was_damaged_at_the_source_is_not_sent(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    flip_bit(new / "model.onnx")
    assert "altered or incomplete" in refusal(board.deploy(new))
    check_unchanged(board, name, old)


@pytest.mark.parametrize("tool", ["rsync", "ssh"])
def test_a_bit_that_flips_on_the_way_is_seen(
    board: BoardSite, own_host: Sshd, make_bundle: MakeBundle, tool: str
) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    board.host = own_host
    if tool == "rsync":
        flip = "printf X | dd of={} seek=99 bs=1 conv=notrunc"
        flip = f"find {board.store.folder}/incoming -name model.onnx -exec sh -c '{flip}' ';'"
        own_host.program(tool, f'PATH=/usr/bin:/bin; {tool} "$@"; code=$?; {flip} 2>/dev/null; exit $code')
    else:
        hide_rsync(own_host)
        script = (own_host.bin / "rdedge").read_text()
        assert b"ReduceMean" in (new / "model.onnx").read_bytes()
        (own_host.bin / "rdedge").write_text(script.replace("PATH", "sed -u s/ReduceMean/ReduceMaen/ | PATH"))
    done = board.deploy(new)
    assert f"sent by {tool}" in done.stdout
    assert "altered or incomplete" in refusal(done)
    check_unchanged(board, name, old)
    assert board.store.names() == [name]


def test_a_board_without_rsync_takes_a_bundle_too(board: BoardSite, own_host: Sshd, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    board.lay(old)
    board.host = own_host
    hide_rsync(own_host)
    done = board.deploy(new)
    assert done.returncode == 0 and "sent by ssh" in done.stdout, done.stderr
    assert board.judges_by() == sha_of(new)


def test_an_rsync_that_fails_is_made_up_for(board: BoardSite, own_host: Sshd, make_bundle: MakeBundle) -> None:
    """As it does when its other side dies, with a file there that is no longer right."""
    old, new = make_bundle("old"), make_bundle("new")
    board.lay(old)
    board.host = own_host
    leave = f"cd {board.store.folder}/incoming/*/ && cp {new}/model.onnx . && printf X >> model.onnx"
    own_host.program("rsync", f"PATH=/usr/bin:/bin; {leave}; exit 11")
    done = board.deploy(new)
    assert done.returncode == 0, done.stderr
    assert "sent by ssh, as rsync failed (code 1" in done.stdout
    assert board.judges_by() == sha_of(new)


def test_a_line_that_requires_a_signature_takes_no_other_bundle(
    board: BoardSite, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    for name in ("ours", "theirs"):
        assert main(["sign", "--new-key", str(tmp_path / name)]) == 0
    (tmp_path / "keys").mkdir()
    (tmp_path / "ours.pub").rename(tmp_path / "keys" / "ours.pub")
    assert main(["sign", str(old), "--key", str(tmp_path / "ours")]) == 0
    uri = board.line_file.read_text().partition('uri = "')[2].partition('"')[0]
    board.write_line(uri, 'require_signature = "keys"')
    name = board.lay(old)
    assert "is not signed" in refusal(board.deploy(new))
    assert main(["sign", str(new), "--key", str(tmp_path / "theirs")]) == 0
    assert "which is not in" in refusal(board.deploy(new))
    check_unchanged(board, name, old)
    assert main(["sign", str(new), "--key", str(tmp_path / "ours")]) == 0
    done = board.deploy(new)
    assert done.returncode == 0, done.stderr
    assert board.judges_by() == sha_of(new)


def test_a_bundle_that_cannot_run_is_never_switched_to(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new", graph=b"no graph")
    name = board.lay(old)
    uptime_s = seen(board)
    error = refusal(board.deploy(new))
    assert "the trial failed" in error and f"the line goes on with {name}" in error
    check_unchanged(board, name, old)
    assert seen(board) > uptime_s, "the line was not even restarted"


def test_a_failing_self_test_stops_a_deploy(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uptime_s = seen(board)
    error = refusal(board.deploy(new, "--selftest", "test -f {bundle}/contract.json && echo too hot && exit 7"))
    assert "the self-test failed with code 7: too hot" in error
    check_unchanged(board, name, old)
    assert seen(board) > uptime_s
    assert board.deploy(new, "--selftest", "test -f {bundle}/contract.json").returncode == 0


def test_the_reason_is_told_even_where_it_cannot_be_written_down(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    state = board.store.folder / "state.json"
    broken = f"rm {state} && mkdir {state} && echo too hot && exit 7"
    assert "the self-test failed with code 7: too hot" in refusal(board.deploy(new, "--selftest", broken))
    check_unchanged(board, name, old)


def test_an_engine_that_cannot_be_built_stops_a_deploy(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uri = board.line_file.read_text().partition('uri = "')[2].partition('"')[0]
    board.write_line(uri, 'backend = "tensorrt-dla0"')
    assert "building the engine failed with code 2: " in refusal(board.deploy(new))
    check_unchanged(board, name, old)


def test_a_bundle_that_rejects_too_much_is_taken_back(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new", rejects=True)
    name = board.lay(old)
    done = board.deploy(new, watch_s=60)
    error = refusal(done)
    assert "100%; allowed are 50%" in error and f"the line is back on {name}" in error
    assert f"switched to {version_of(new)}" in done.stdout
    check_unchanged(board, name, old)
    assert "100%; allowed are 50%" in board.store.state().last
    assert board.deploy(new, "--max-reject-rate", 1).returncode == 0, "unless that is allowed"


def test_a_line_that_does_not_start_gets_its_old_bundle_back(
    board: BoardSite, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    fails = f"test $(readlink {board.store.current_link}) = versions/{name} && {board.restart}"
    error = refusal(board.deploy(new, "--restart", fails))
    assert "restarting the line with" in error and f"the line is back on {name}" in error
    check_unchanged(board, name, old)


def test_a_line_that_crashes_gets_its_old_bundle_back(board: BoardSite, make_bundle: MakeBundle) -> None:
    """It starts, and is killed a moment later, each time, as by a fault that shows only on frames."""
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    is_over = threading.Event()

    def crash() -> None:
        while not is_over.wait(0.05):
            pid, now = board.line_pid, board.seen()
            if now is not None and now.bundles == {sha_of(new)} and now.uptime_s > 1.5:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    crashing = threading.Thread(target=crash)
    crashing.start()
    try:
        error = refusal(board.deploy(new, watch_s=60))
    finally:
        is_over.set()
        crashing.join()
    assert "was started again" in error and f"the line is back on {name}" in error
    check_unchanged(board, name, old)


@pytest.mark.slow
def test_a_camera_that_is_lost_with_the_new_bundle_is_no_success(board: BoardSite, make_bundle: MakeBundle) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    name = board.lay(old)
    uri = board.line_file.read_text().partition('uri = "')[2].partition('"')[0]
    board.write_line(uri.replace("/video", "/nothing"))
    assert "cameras that were well before are not: top" in refusal(board.deploy(new, watch_s=20))
    assert board.store.current == name


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def hide_rsync(host: Sshd) -> None:
    """A PATH on which everything is but rsync."""
    for folder in os.environ["PATH"].split(os.pathsep):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            link = host.bin / path.name
            if path.name != "rsync" and not os.path.lexists(link):
                link.symlink_to(path)
    script = (host.bin / "rdedge").read_text().replace("exec", f"PATH={host.bin} exec")
    (host.bin / "rdedge").write_text(script)


def seen(board: BoardSite) -> float:
    now = board.seen()
    assert now is not None
    return now.uptime_s
