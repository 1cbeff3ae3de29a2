"""A slow or failing sink never holds the line; what it could not take is counted, good parts first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sink_parts import TIMEOUT_S, inspection, wait_until

from rdedge.errors import SinkError
from rdedge.events import Event
from rdedge.inspector import Inspection
from rdedge.sinks import DetachedSink, OverlaySink

Disk = Callable[[int], AbstractContextManager[None]]
SIZE_HW = (100, 100)
BYTES = 100 * 100 * 3 + 48 * 64 * 4  # of one inspection


class Gate:
    """A sink that waits until it is let through, and fails when told to."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.open = threading.Event()
        self.begun = threading.Event()
        self.fault: Exception | None = None
        self.closed = 0

    def write(self, inspection: Inspection) -> None:
        self.begun.set()
        assert self.open.wait(TIMEOUT_S)
        if self.fault is not None:
            raise self.fault
        self.indices.append(inspection.frame.index)

    def close(self) -> None:
        self.closed += 1


MakeSink = Callable[..., DetachedSink]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(gate: Gate, events: list[Event]) -> Iterator[MakeSink]:
    opened: list[DetachedSink] = []

    def open_sink(queued: int = 5, drain_s: float = TIMEOUT_S, sink: OverlaySink | None = None) -> DetachedSink:
        opened.append(
            DetachedSink(
                sink or gate,
                wants=lambda inspection: inspection.frame.index != 13,
                name="pictures",
                camera="top",
                on_event=events.append,
                max_bytes=queued * BYTES,
                drain_s=drain_s,
            )
        )
        return opened[-1]

    yield open_sink
    gate.open.set()
    for sink in opened:
        sink.close()
    wait_until(lambda: not any(thread.name == "rdedge-pictures" for thread in threading.enumerate()))


def seen(index: int, is_anomalous: bool = True) -> Inspection:
    return inspection(index, is_anomalous=is_anomalous, size_hw=SIZE_HW)


def failed(cause: Exception | None) -> SinkError:
    error = SinkError("x.jpg: cannot be written", remedy="check the disk")
    error.__cause__ = cause
    return error


def test_all_is_written_in_order_before_the_end(make: MakeSink, gate: Gate) -> None:
    gate.open.set()
    sink = make(queued=100)
    for index in range(20):
        sink.write(seen(index))
    sink.close()
    sink.close()
    assert gate.indices == [index for index in range(20) if index != 13] and gate.closed == 1
    assert (sink.counts.taken, sink.counts.written) == (19, 19)
    sink.write(seen(99))
    assert sink.counts.taken == 19


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        ("RRRRRRRR", [3, 4, 5, 6, 7]),
        ("RGRGRGRG", [0, 2, 4, 6, 7]),
        ("RGGGRRRR", [0, 4, 5, 6, 7]),
        ("RRRRRGGG", [0, 1, 2, 3, 4]),
    ],
)
def test_good_parts_go_first_and_then_the_oldest_rejects(
    make: MakeSink, gate: Gate, events: list[Event], kinds: str, kept: list[int]
) -> None:
    sink = make(queued=5)
    for index, kind in enumerate(kinds):
        sink.write(seen(index, kind == "R"))
        if index == 0:
            assert gate.begun.wait(TIMEOUT_S)
    gate.open.set()
    sink.close()
    expected = kept if 0 in kept else [0, *kept]  # what was being written when it was dropped is written
    assert gate.indices == expected
    counts = sink.counts
    assert (sink.waiting, sink.lost) == (0, 8 - len(expected))
    assert counts.taken == 8 == counts.written + counts.dropped_good + counts.dropped_rejects
    assert counts.dropped_rejects == kinds.count("R") - sum(kinds[index] == "R" for index in expected)
    assert [(event.kind, event.severity, event.camera) for event in events] == [("pictures-lost", "error", "top")]


def test_one_larger_than_the_queue_is_taken(make: MakeSink, gate: Gate) -> None:
    gate.open.set()
    sink = make(queued=0)
    sink.write(seen(1))
    sink.close()
    assert gate.indices == [1]


def test_a_full_disk_is_told_once_and_tried_again(make: MakeSink, gate: Gate, events: list[Event]) -> None:
    gate.open.set()
    gate.fault = failed(OSError(28, "No space left on device"))
    sink = make(queued=100)
    for index in range(10):
        sink.write(seen(index))
    wait_until(lambda: bool(events))
    time.sleep(0.7)
    gate.fault = None
    wait_until(lambda: sink.counts.written == 10)
    sink.close()
    assert gate.indices == list(range(10))
    assert [(event.kind, event.severity) for event in events] == [("disk-fault", "error"), ("disk-recovered", "info")]


@pytest.mark.parametrize("fault", [failed(None), ValueError("a bug")], ids=["never-possible", "a-bug"])
def test_one_that_can_never_be_written_does_not_stop_the_next(
    make: MakeSink, gate: Gate, events: list[Event], fault: Exception
) -> None:
    gate.open.set()
    gate.fault = fault
    sink = make()
    sink.write(seen(1))
    wait_until(lambda: bool(events))
    gate.fault = None
    sink.write(seen(2))
    sink.close()
    assert gate.indices == [2]
    assert [event.kind for event in events] == ["picture-refused"] and str(fault) in events[0].text
    assert (sink.counts.taken, sink.counts.written, sink.counts.dropped_rejects) == (2, 1, 1)


def test_what_is_left_at_the_end_is_told(make: MakeSink, gate: Gate, events: list[Event]) -> None:
    gate.open.set()
    gate.fault = failed(OSError(28, "No space left on device"))
    sink = make(queued=100)
    for index in range(10):
        sink.write(seen(index, index % 2 == 0))
    wait_until(lambda: bool(events))
    sink.close()
    assert "10 were not written before the end" in events[-1].text
    assert (sink.counts.dropped_good, sink.counts.dropped_rejects) == (5, 5)


def test_the_end_does_not_wait_for_a_sink_that_hangs(make: MakeSink, gate: Gate) -> None:
    sink = make(drain_s=0.1)
    sink.write(seen(1))
    assert gate.begun.wait(TIMEOUT_S)
    started_s = time.monotonic()
    sink.close()
    assert time.monotonic() - started_s < TIMEOUT_S / 2


def test_pictures_of_a_full_disk_come_when_there_is_space(
    make: MakeSink, tmp_path: Path, disk_of: Disk, events: list[Event]
) -> None:
    sink = make(queued=100, sink=OverlaySink(tmp_path, None))
    with disk_of(1000):
        for index in range(5):
            sink.write(seen(index))
        wait_until(lambda: bool(events))
    wait_until(lambda: sink.counts.written == 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"00000{index}_b.jpg" for index in range(5)]
