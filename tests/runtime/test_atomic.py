"""Files and folders appear whole or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rdedge.atomic import clear_abandoned, new_folder, write_bytes
from rdedge.errors import UsageError

FILL_AND_WAIT = """
import sys, time
from pathlib import Path
from rdedge.atomic import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, disk_of: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_bytes(tmp_path / "a", b"old")
    with disk_of(100), pytest.raises(OSError, match="too large") as caught:
        write_bytes(tmp_path / "a", b"new" * 100)
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_no_folder_and_is_named_by_it(
    tmp_path: Path, disk_of: Callable[[int], AbstractContextManager[None]]
) -> None:
    with disk_of(100), pytest.raises(OSError, match="too large") as caught, new_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"new" * 100)
    assert caught.value.filename == str(tmp_path / "out")
    assert names(tmp_path) == []


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_folder(tmp_path / "out"):
        (tmp_path / "elsewhere").read_bytes()
    assert caught.value.filename == str(tmp_path / "elsewhere")


def test_a_file_cannot_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_bytes(tmp_path / "a", b"new")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "a"), None)
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "sub" / "a").read_bytes() == b"1"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_any_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"1")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_not_touched(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_bytes(b"mine")
    else:
        out.symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"out already exists; name another folder"), new_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_bytes(b"theirs")
    assert (tmp_path / "out" / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "out[1]", "out*"])
def test_folders_of_dead_processes_are_cleared_and_no_others(tmp_path: Path, name: str) -> None:
    cleared = [f".{name}.partial-{dead_pid()}", f".{name}.partial-{os.getpid()}", f".{name}.partial-{10**30}"]
    kept = [f".{name}.partial-1", f".other.partial-{dead_pid()}", f".{name}.partial-x", f".{name}.partial-²"]
    for folder in (*cleared, *kept):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "half").write_bytes(b"x")
    with new_folder(tmp_path / name):
        pass
    assert names(tmp_path) == sorted([name, *kept])


def test_files_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    for name in (f".a.partial-{dead_pid()}", ".a.partial-1", "a"):
        (tmp_path / name).write_bytes(b"x")
    clear_abandoned(tmp_path / "a")
    assert names(tmp_path) == [".a.partial-1", "a"]


def test_a_killed_process_leaves_only_a_partial_folder_and_the_next_clears_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", FILL_AND_WAIT, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert names(tmp_path) == [f".out.partial-{process.pid}"]
    with new_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def sync_files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    write_bytes(tmp_path / "a", b"1")
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["a", "out"]
