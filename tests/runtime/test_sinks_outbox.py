"""Everything appended is delivered, in order, whatever is away, full, damaged or killed; what cannot be is counted."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sink_parts import TIMEOUT_S, wait_until

from rdedge.errors import SinkError
from rdedge.events import Event
from rdedge.sinks.outbox import Outbox
from rdedge.sinks.spool import Item

Disk = Callable[[int], AbstractContextManager[None]]


class Receiver:
    """Takes records when it is there; ``at_once``: how many of those offered it takes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.is_there = True
        self.at_once = 1000
        self.tries = 0
        self.changed = threading.Condition()

    def deliver(self, items: Sequence[Item]) -> int:
        with self.changed:
            self.tries += 1
            self.changed.notify_all()
            if not self.is_there:
                raise SinkError("nobody answers", remedy="wait")
            taken = items[: self.at_once]
            self.bodies += [item.body for item in taken]
            return len(taken)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.bodies) >= count, TIMEOUT_S), len(self.bodies)


MakeOutbox = Callable[..., Outbox]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(
    tmp_path: Path, receiver: Receiver, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeOutbox]:
    """Opens outboxes on one spool, and closes them in the end: their threads all end, for no receiver here hangs."""
    opened: list[Outbox] = []

    def open_outbox(max_bytes: int = 1 << 20, drain_s: float = 0.0, batch: int = 10) -> Outbox:
        outbox = Outbox(
            tmp_path / "spool",
            receiver.deliver,
            name="mqtt",
            camera="top",
            on_event=events.append,
            max_bytes=max_bytes,
            batch=batch,
            longest_pause_s=0.5,
            drain_s=drain_s,
        )
        join = outbox._thread.join
        monkeypatch.setattr(outbox._thread, "join", lambda _timeout_s: join(TIMEOUT_S))
        opened.append(outbox)
        return outbox

    yield open_outbox
    for outbox in opened:
        outbox.close()


def body(number: int) -> bytes:
    return b'{"n": %d}' % number


def bodies(*ranges: range) -> list[bytes]:
    return [body(n) for numbers in ranges for n in numbers]


def append(outbox: Outbox, numbers: range) -> None:
    for number in numbers:
        outbox.append("verdict", body(number))


def test_records_arrive_in_order_and_leave_nothing(make: MakeOutbox, receiver: Receiver, tmp_path: Path) -> None:
    outbox = make(drain_s=TIMEOUT_S)
    append(outbox, range(500))
    outbox.close()
    assert receiver.bodies == bodies(range(500))
    assert (outbox.counts.appended, outbox.counts.delivered, outbox.counts.lost, outbox.waiting) == (500, 500, 0, 0)
    assert list((tmp_path / "spool").glob("*.spool")) == []


def test_a_receiver_that_was_away_gets_everything(make: MakeOutbox, receiver: Receiver, events: list[Event]) -> None:
    receiver.is_there = False
    outbox = make()
    append(outbox, range(300))
    with receiver.changed:
        assert receiver.changed.wait_for(lambda: receiver.tries >= 3, TIMEOUT_S)
    assert outbox.waiting == 300
    receiver.is_there = True
    append(outbox, range(300, 310))
    receiver.wait_for(310)
    assert receiver.bodies == bodies(range(310))
    outbox.close()
    assert [(event.kind, event.severity, event.camera) for event in events] == [
        ("sink-away", "warning", "top"),
        ("sink-back", "info", "top"),
    ]
    assert "nobody answers" in events[0].text


def test_a_receiver_that_takes_a_few_gets_the_others_next(make: MakeOutbox, receiver: Receiver) -> None:
    receiver.at_once = 3
    outbox = make()
    append(outbox, range(100))
    receiver.wait_for(100)
    assert receiver.bodies == bodies(range(100))


def test_what_waits_is_delivered_by_the_next_process(make: MakeOutbox, receiver: Receiver) -> None:
    receiver.is_there = False
    first = make()
    append(first, range(50))
    first.close()
    receiver.is_there = True
    second = make()
    append(second, range(50, 60))
    receiver.wait_for(60)
    assert receiver.bodies == bodies(range(60))
    second.close()
    assert (second.counts.appended, second.counts.delivered) == (60, 60)


def test_closing_a_spool_of_an_absent_receiver_does_not_wait(make: MakeOutbox, receiver: Receiver) -> None:
    receiver.is_there = False
    outbox = make(drain_s=1000.0)
    append(outbox, range(5))
    outbox.close()
    outbox.append("verdict", b"late")
    assert outbox.waiting == 5


def test_a_bug_of_the_receiver_is_told_and_delivery_goes_on(
    make: MakeOutbox, receiver: Receiver, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = iter([ValueError("a bug")])
    deliver = receiver.deliver

    def buggy(items: Sequence[Item]) -> int:
        for fault in faults:
            raise fault
        return deliver(items)

    monkeypatch.setattr(receiver, "deliver", buggy)
    append(make(), range(3))
    receiver.wait_for(3)
    assert "ValueError: a bug" in events[0].text


def test_a_full_spool_drops_the_oldest_and_counts_them(
    make: MakeOutbox, receiver: Receiver, events: list[Event], tmp_path: Path
) -> None:
    receiver.is_there = False
    outbox = make(max_bytes=16_000)
    append(outbox, range(3000))
    wait_until(lambda: not outbox._held.waiting(1) and outbox.counts.lost > 2000)
    files = sorted((tmp_path / "spool").glob("*.spool"))
    assert sum(path.stat().st_size for path in files) <= 16_000
    in_files = sum(len(path.read_bytes().splitlines()) for path in files)
    wait_until(lambda: in_files <= outbox.waiting <= in_files + 10)  # a batch may be in memory alone
    lost, waiting = outbox.counts.lost, outbox.waiting
    receiver.is_there = True
    receiver.wait_for(waiting)
    outbox.close()
    assert [event.kind for event in events].count("spool-full") == 1
    assert (outbox.counts.delivered, outbox.counts.lost) == (waiting, lost)
    numbers = [json.loads(body)["n"] for body in receiver.bodies]
    assert len(numbers) == waiting and numbers == sorted(set(numbers))
    assert numbers[-in_files:] == list(range(3000 - in_files, 3000))


def test_a_full_disk_delivers_from_memory(
    make: MakeOutbox, receiver: Receiver, events: list[Event], disk_of: Disk, tmp_path: Path
) -> None:
    outbox = make()
    with disk_of(200):
        append(outbox, range(100))
        receiver.wait_for(100)
    assert receiver.bodies == bodies(range(100))
    assert [event.kind for event in events] == ["disk-fault"]
    receiver.is_there = False  # as fast as it is, it would spare the disk every write
    append(outbox, range(100, 200))
    wait_until(lambda: any(event.kind == "disk-recovered" for event in events))
    receiver.is_there = True
    receiver.wait_for(200)
    outbox.close()
    assert receiver.bodies == bodies(range(200)) and outbox.counts.lost == 0
    assert [e.kind for e in events if e.kind.startswith("disk")] == ["disk-fault", "disk-recovered"]


def test_a_full_disk_and_no_receiver_lose_nothing_that_fits_memory(
    make: MakeOutbox, receiver: Receiver, disk_of: Disk
) -> None:
    receiver.is_there = False
    outbox = make()
    append(outbox, range(5))
    with disk_of(300):
        append(outbox, range(5, 100))
    receiver.is_there = True
    receiver.wait_for(100)
    assert receiver.bodies == bodies(range(100)) and outbox.counts.lost == 0


def test_what_waits_in_memory_never_overtakes_what_is_on_the_disk(
    make: MakeOutbox, receiver: Receiver, disk_of: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    with monkeypatch.context() as patch:
        patch.setattr(outbox._spool, "read", lambda limit: [])  # it comes just before the first record
        append(outbox, range(5))
        with disk_of(0):
            append(outbox, range(5, 10))
            wait_until(lambda: outbox._held.is_failing)
            time.sleep(0.3)
    receiver.wait_for(10)
    assert receiver.bodies == bodies(range(10))


def test_the_handler_of_events_may_append(
    make: MakeOutbox, receiver: Receiver, events: list[Event], tmp_path: Path
) -> None:
    outbox: Outbox | None = None

    def forward(event: Event) -> None:
        if outbox is not None:
            outbox.append("alarm", event.kind.encode())

    outbox = Outbox(
        tmp_path / "other",
        receiver.deliver,
        name="x",
        camera="",
        on_event=forward,
        max_bytes=1 << 20,
        batch=5,
        longest_pause_s=0.1,
        drain_s=TIMEOUT_S,
    )
    receiver.is_there = False
    outbox.append("verdict", b"1")
    with receiver.changed:
        assert receiver.changed.wait_for(lambda: receiver.tries >= 2, TIMEOUT_S)
        receiver.is_there = True
    receiver.wait_for(3)
    outbox.close()
    assert receiver.bodies == [b"1", b"sink-away", b"sink-back"]


@pytest.mark.parametrize("seed", range(8))
def test_any_course_of_events_loses_and_swaps_nothing(
    make: MakeOutbox, receiver: Receiver, disk_of: Disk, seed: int
) -> None:
    """Restarts, outages, part deliveries and full disks in any order: each record exactly once, in order."""
    rng = random.Random(seed)
    outbox, count = make(batch=rng.choice([1, 3, 50])), 0
    for _ in range(40):
        receiver.is_there, receiver.at_once = rng.random() < 0.6, rng.randint(1, 20)
        more = range(count, count := count + rng.randint(0, 30))
        if rng.random() < 0.2:
            with disk_of(rng.randint(0, 2000)):
                append(outbox, more)
        else:
            append(outbox, more)
        if rng.random() < 0.3:
            outbox.close()
            assert outbox.counts.lost == 0
            outbox = make(batch=rng.choice([1, 3, 50]))
        time.sleep(rng.choice([0, 0.01]))
    receiver.is_there, receiver.at_once = True, 1000
    receiver.wait_for(count)
    outbox.close()
    assert receiver.bodies == bodies(range(count))
