"""A disk that is slow, hangs or is full delays no line and loses none: it is told once, and tried again."""

from __future__ import annotations

import errno
import threading
import time

import pytest
from sink_parts import TIMEOUT_S, wait_until

from rdedge.sinks.held import HeldLines
from rdedge.sinks.lines import syncing


class Disk:
    """Takes lines, refuses them, or makes them wait."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.is_full = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.tries = 0

    def write(self, line: bytes) -> None:
        self.tries += 1
        assert self.goes_on.wait(TIMEOUT_S)
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken.append(line)


def put_all(held: HeldLines, numbers: range) -> list[list[bytes]]:
    return [held.put(b"%02d" % number) for number in numbers]


def lines(numbers: range) -> list[bytes]:
    return [b"%02d" % number for number in numbers]


def test_lines_are_written_in_order() -> None:
    disk = Disk()
    held = HeldLines(disk.write, max_bytes=1000, on_change=lambda fault: None)
    assert put_all(held, range(50)) == [[]] * 50
    assert held.close() == [] and disk.taken == lines(range(50))
    held.put(b"again")
    assert held.close() == [] and disk.taken[-1] == b"again"


def test_refused_lines_wait_in_order_and_faults_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdedge.sinks.held._RETRY_S", TIMEOUT_S)
    disk, told = Disk(), list[object]()
    held = HeldLines(disk.write, max_bytes=1000, on_change=told.append)
    put_all(held, range(1))
    wait_until(lambda: disk.taken == lines(range(1)))
    disk.is_full = True
    put_all(held, range(1, 5))
    wait_until(lambda: bool(told))
    time.sleep(0.05)
    assert disk.tries == 3 and held.is_failing, "a full disk is not tried at every line"
    assert held.waiting(3) == lines(range(1, 4))
    disk.is_full = False
    assert held.close() == [] and disk.taken == lines(range(5))
    assert [type(change) for change in told] == [OSError, type(None)]


def test_a_disk_that_was_full_is_tried_again() -> None:
    disk, told = Disk(), list[object]()
    held = HeldLines(disk.write, max_bytes=1000, on_change=told.append)
    disk.is_full = True
    put_all(held, range(4))
    wait_until(lambda: bool(told))
    disk.is_full = False
    wait_until(lambda: len(told) == 2)
    assert told[1] is None
    put_all(held, range(4, 5))
    assert held.close() == [] and disk.taken == lines(range(5))


def test_too_many_lines_push_out_the_oldest_but_not_the_one_being_written() -> None:
    disk = Disk()
    disk.goes_on.clear()
    held = HeldLines(disk.write, max_bytes=6, on_change=lambda fault: None)
    with syncing():
        put_all(held, range(1))
    wait_until(lambda: disk.tries == 1)
    assert put_all(held, range(1, 5)) == [[], [], [b"01"], [b"02"]]
    disk.goes_on.set()
    assert held.close() == [] and disk.taken == [b"00", b"03", b"04"]


def test_a_disk_that_hangs_delays_nobody() -> None:
    disk = Disk()
    disk.goes_on.clear()
    held = HeldLines(disk.write, max_bytes=1 << 20, on_change=lambda fault: None)
    started_s = time.monotonic()
    with syncing():
        put_all(held, range(5000))
    assert time.monotonic() - started_s < TIMEOUT_S / 2, "twenty milliseconds once, not for each line"
    disk.goes_on.set()
    assert held.close() == [] and len(disk.taken) == 5000


def test_whoever_puts_a_line_finds_it_written() -> None:
    """A kill right after cannot lose it."""
    disk = Disk()
    held = HeldLines(disk.write, max_bytes=1000, on_change=lambda fault: None)
    for number in range(200):
        put_all(held, range(number, number + 1))
        assert disk.taken == lines(range(number + 1))
    assert threading.active_count() == 1 or "rdedge-lines" not in {thread.name for thread in threading.enumerate()}


def test_a_slow_write_during_a_sync_delays_nobody() -> None:
    disk = Disk()
    disk.goes_on.clear()
    held = HeldLines(disk.write, max_bytes=1000, on_change=lambda fault: None)
    with syncing():
        put_all(held, range(3))
    assert disk.taken == []
    put_all(held, range(3, 5))
    disk.goes_on.set()
    assert held.close() == [] and disk.taken == lines(range(5))


def test_lines_that_are_done_are_not_written() -> None:
    disk = Disk()
    disk.goes_on.clear()
    held = HeldLines(disk.write, max_bytes=1000, on_change=lambda fault: None)
    with syncing():
        put_all(held, range(1))
    wait_until(lambda: disk.tries == 1)
    put_all(held, range(1, 6))
    held.skip_while(lambda line: line < b"03")
    disk.goes_on.set()
    assert held.close() == [] and disk.taken == [b"00", b"03", b"04", b"05"]


def test_closing_tries_once_more_and_returns_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdedge.sinks.held._RETRY_S", TIMEOUT_S)
    disk = Disk()
    disk.is_full = True
    held = HeldLines(disk.write, max_bytes=1000, on_change=lambda fault: None)
    put_all(held, range(3))
    wait_until(lambda: disk.tries == 2)
    assert held.close() == lines(range(3)) and disk.tries == 3
    assert held.waiting(10) == []
