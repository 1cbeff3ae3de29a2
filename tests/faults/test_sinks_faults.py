"""Sinks in trouble: brokers away, processes killed, disks full. The scripts beside run the same for longer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import broker_outage
import pytest
import sinks_killed
from sink_parts import TIMEOUT_S, SmallDisk, inspection, wait_until

from rdedge.errors import SinkError
from rdedge.events import Event
from rdedge.sinks import DetachedSink, DiskBudget, JsonLinesSink, OverlaySink
from rdedge.sinks.outbox import Outbox
from rdedge.sinks.spool import Item


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", 4 << 20)
    yield disk
    disk.remove()


def test_no_verdict_is_lost_while_the_broker_is_away(tmp_path: Path) -> None:
    result = broker_outage.run(tmp_path, away_s=6.0, rate=30.0, lead_s=2.0)
    assert (result["written"], result["arrived"], result["missing"], result["unknown"]) == (300, 300, 0, 0)
    assert result["waiting_when_it_came_back"] == 180
    assert result["events"] == ["sink-away", "sink-back"]
    assert result["in_order"]


def test_kills_leave_whole_files_and_nothing_is_missing(tmp_path: Path) -> None:
    result = sinks_killed.run(tmp_path, kills=8)
    assert sinks_killed.is_right(result), result
    assert isinstance(result["told"], int) and result["told"] > 20, result
    assert result["kills_while_writing"] in (6, 7, 8), "two of eight may come while it starts"


def test_a_disk_that_fills_up_delays_pictures_and_loses_none(tmp_path: Path, disk: SmallDisk) -> None:
    events: list[Event] = []
    root = tmp_path / "disk" / "rejects"
    overlay = OverlaySink(root, None, budget=DiskBudget(root, max_bytes=1 << 30, keep_rejects=5))
    sink = DetachedSink(overlay, wants=overlay.wants, name="pictures", camera="top", on_event=events.append)
    sink.write(inspection(0))
    wait_until(lambda: sink.counts.written == 1)
    disk.fill()
    for index in range(1, 30):
        sink.write(inspection(index))
    wait_until(lambda: [event.kind for event in events] == ["disk-fault"])
    time.sleep(0.7)
    assert sink.counts.written == 1 and sorted(path.name for path in root.iterdir()) == ["000000_b.jpg"]
    disk.free()
    wait_until(lambda: sink.counts.written == 30)
    sink.close()
    assert [event.kind for event in events] == ["disk-fault", "disk-recovered"]
    assert sorted(path.name for path in root.iterdir()) == [f"{index:06d}_b.jpg" for index in range(30)]
    assert sinks_killed.damage(tmp_path) == []


def test_a_disk_that_fills_up_costs_no_line_and_no_record(tmp_path: Path, disk: SmallDisk) -> None:
    """The file and the spool of a receiver that is away wait in memory; then all is on the disk, in order."""
    events: list[Event] = []
    arrived: list[Item] = []
    is_there = False

    def deliver(items: Sequence[Item]) -> int:
        if not is_there:
            raise SinkError("nobody answers", remedy="wait")
        arrived.extend(items)
        return len(items)

    jsonl = JsonLinesSink(tmp_path / "disk" / "x.jsonl", "s", on_event=events.append)
    outbox = Outbox(
        tmp_path / "disk" / "spool",
        deliver,
        name="mqtt",
        camera="",
        on_event=events.append,
        max_bytes=1 << 20,
        batch=10,
        longest_pause_s=0.5,
        drain_s=TIMEOUT_S,
    )

    def told(kind: str) -> int:
        return sum(event.kind == kind for event in events)

    for index in range(300):
        if index == 20:
            disk.fill()
        if index == 200:
            wait_until(lambda: told("disk-fault") == 2)
            disk.free()
            wait_until(lambda: told("disk-recovered") == 2)
        jsonl.write(inspection(index, size_hw=(16, 16)))
        outbox.append("verdict", b"%d" % index)
    is_there = True
    outbox.close()
    jsonl.close()
    lines = (tmp_path / "disk" / "x.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(300))
    assert [int(item.body) for item in arrived] == list(range(300))
    assert (told("disk-fault"), told("disk-recovered")) == (2, 2)
