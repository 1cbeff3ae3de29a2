"""Lines reach the disk for good within the stated time, and a disk that cannot sync says so at the next line."""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from sink_parts import TIMEOUT_S, wait_until

from rdedge.sinks.lines import LineLog


class Syncs:
    """Stands before fdatasync: notes which file is synced, and fails when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.names: list[str] = []
        self.fault: OSError | None = None
        self._really = os.fdatasync
        self._changed = threading.Condition()
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, fd: int) -> None:
        if self.fault is not None:
            raise self.fault
        self._really(fd)
        with self._changed:
            self.names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.names) >= count, TIMEOUT_S), self.names


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def open_files(folder: Path) -> set[str]:
    """Names of the files in it that this process holds open."""
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            paths.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
    return {path.name for path in paths if path.parent == folder}


def test_a_thread_syncs_what_was_appended_and_then_rests(tmp_path: Path, syncs: Syncs) -> None:
    log = LineLog(sync_s=0.05)
    log.open(tmp_path / "a")
    log.append(b"1\n")
    syncs.wait_for(1)
    time.sleep(0.3)
    assert len(syncs.names) <= 2, "an idle line does not wake the disk"
    count = len(syncs.names)
    log.append(b"2\n")
    syncs.wait_for(count + 1)
    log.close()


def test_a_file_that_was_left_is_synced_and_closed_too(tmp_path: Path, syncs: Syncs) -> None:
    log = LineLog(sync_s=0.05)
    for name in "abc":
        log.open(tmp_path / name)
        log.append(b"1\n")
    wait_until(lambda: set(syncs.names) == {"a", "b", "c"})
    assert "c" in open_files(tmp_path)
    log.close()
    assert open_files(tmp_path) == set()


def test_closing_syncs(tmp_path: Path, syncs: Syncs) -> None:
    log = LineLog(sync_s=1000)
    log.open(tmp_path / "a")
    log.append(b"x\n")
    log.close()
    log.close()
    assert syncs.names == ["a"] and not log.is_open


def test_a_failed_sync_is_raised_by_the_next_append(tmp_path: Path, syncs: Syncs) -> None:
    log = LineLog(sync_s=0.02)
    log.open(tmp_path / "a")
    syncs.wait_for(1)
    syncs.fault = OSError(errno.EIO, "Input/output error")
    log.append(b"1\n")
    until_s = time.monotonic() + TIMEOUT_S
    with pytest.raises(OSError, match="Input/output error"):
        while time.monotonic() < until_s:
            log.append(b"2\n")
            time.sleep(0.01)
    syncs.fault = None
    log.append(b"3\n")
    log.close()
    assert (tmp_path / "a").read_bytes().endswith(b"3\n")
