"""What the policies keep, drop and count; and that no part is dropped without its name being told."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from camera_servers import wait_until

from rdedge.errors import ImageError, UsageError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.sources import SourceInfo
from rdedge.stream import Policy, Stream, StreamCounts

WAIT_S = 30.0


def frame(index: int) -> Frame:
    image = np.zeros((2, 2, 3), np.uint8)
    return Frame(image_bgr_u8=image, index=index, captured_at_s=time.monotonic(), source=f"{index}.png")


def part(index: int, part_id: str, age_s: float = 0.0) -> Frame:
    taken_s = time.monotonic() - age_s
    return replace(frame(index), part_id=part_id, device_timestamp_s=taken_s)


class Given:
    """A source of exactly these frames: the first, then the others when ``first_was_taken`` is set."""

    name = "given"
    info = SourceInfo()

    def __init__(self, frames: list[Frame], *, at_once: bool = False):
        self.skipped: list[ImageError] = []
        self._frames = frames
        self.first_was_taken = threading.Event()
        if at_once:
            self.first_was_taken.set()

    def __iter__(self) -> Iterator[Frame]:
        yield self._frames[0]
        self.first_was_taken.wait(WAIT_S)
        yield from self._frames[1:]

    def close(self) -> None:
        self.first_was_taken.set()


def plain(count: int) -> Given:
    return Given([frame(index) for index in range(count)], at_once=True)


def test_a_part_that_finds_the_queue_full_is_dropped_by_name_and_told_once() -> None:
    events: list[Event] = []
    source = Given([part(i, f"P{i}") for i in range(10)])
    stream = Stream(source, queue_size=3, camera="left", on_event=events.append)
    frames = iter(stream)
    first = next(frames)
    source.first_was_taken.set()
    wait_until(lambda: stream.counts.offered == 10)
    counts = stream.counts
    assert (counts.delivered, counts.queued) == (1, 3) and counts.dropped == 6
    kept = [first.part_id, *(f.part_id for f in frames)]
    assert kept == ["P0", "P1", "P2", "P3"]
    assert [event.text.split()[1] for event in events if event.kind == "part-lost"] == [f"P{i}" for i in range(4, 10)]
    assert [event.kind for event in events if event.kind != "part-lost"] == ["backlog", "caught-up"]
    assert {event.camera for event in events} == {"left"}
    assert events[0].severity == "error" and "parts come faster than they are judged; 3 wait" in events[0].text


def test_a_camera_with_parts_never_waits_for_the_judge() -> None:
    """Its next picture would be another part's."""
    source = Given([part(i, str(i)) for i in range(1000)])
    stream = Stream(source, queue_size=2, on_event=lambda _: None)
    frames = iter(stream)
    next(frames)
    source.first_was_taken.set()
    wait_until(lambda: stream.counts.offered == 1000)
    stream.close()
    counts = stream.counts
    assert counts.offered == counts.delivered + counts.dropped + counts.queued == 1000


def test_frames_older_than_the_cycle_are_not_judged() -> None:
    ages_s = [0.0, 600.0, 0.0, 600.0, 600.0, 0.0]
    events: list[Event] = []
    frames = [part(i, f"P{i}", age_s) for i, age_s in enumerate(ages_s)]
    source = Given(frames)
    source.first_was_taken.set()
    stream = Stream(source, policy="drop-late", queue_size=10, max_age_ms=60_000.0, on_event=events.append)
    assert [f.index for f in stream] == [0, 2, 5]
    counts = stream.counts
    assert (counts.offered, counts.delivered, counts.dropped, counts.late, counts.queued) == (6, 3, 3, 3, 0)
    assert [event.text.split()[1] for event in events] == ["P1", "P3", "P4"]
    age_ms = re.search(r"is (\d+) ms old; it gets no verdict", events[0].text)
    assert age_ms is not None and 600_000 <= int(age_ms[1]) < 660_000


def test_a_frame_gets_old_while_it_waits_and_its_arrival_counts_without_a_clock_of_its_own() -> None:
    source = Given([frame(0), replace(frame(1), captured_at_s=time.monotonic() - 59.0)])
    stream = Stream(source, policy="drop-late", queue_size=4, max_age_ms=60_000.0)
    frames = iter(stream)
    next(frames)
    source.first_was_taken.set()
    wait_until(lambda: stream.counts.queued == 1)
    time.sleep(1.1)
    assert list(frames) == [] and stream.counts.late == 1


def test_drop_late_keeps_the_newest_of_a_full_queue() -> None:
    source = Given([frame(index) for index in range(20)])
    stream = Stream(source, policy="drop-late", queue_size=3, max_age_ms=60_000.0)
    frames = iter(stream)
    next(frames)
    source.first_was_taken.set()
    wait_until(lambda: stream.counts.offered == 20)
    assert [f.index for f in frames] == [17, 18, 19]
    assert (stream.counts.dropped, stream.counts.late) == (16, 0)


@pytest.mark.parametrize("policy", ["every", "latest", "drop-late"])
def test_counts_add_up_at_every_moment(policy: Policy) -> None:
    """offered = delivered + dropped + queued, seen from a third thread while both others run."""
    stream = Stream(plain(3000), policy=policy, queue_size=5, max_age_ms=1.0 if policy == "drop-late" else None)
    wrong: list[StreamCounts] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            counts = stream.counts
            if counts.offered != counts.delivered + counts.dropped + counts.queued or counts.late > counts.dropped:
                wrong.append(counts)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seen = 0
    for f in stream:
        seen += 1
        if f.index % 500 == 0:
            time.sleep(0.002)
    done.set()
    watcher.join(WAIT_S)
    assert wrong == []
    assert stream.counts.offered == 3000 and stream.counts.delivered == seen and stream.counts.queued == 0


def test_a_stream_left_early_counts_what_was_still_queued() -> None:
    stream = Stream(plain(100), queue_size=7)
    frames = iter(stream)
    next(frames)
    wait_until(lambda: stream.counts.queued == 7)
    stream.close()
    counts = stream.counts
    assert (counts.offered, counts.delivered, counts.dropped, counts.queued) == (8, 1, 0, 7)


@pytest.mark.parametrize(
    ("policy", "max_age_ms", "says"),
    [
        ("drop-late", None, "policy drop-late with a greatest age of None ms; drop-late needs one"),
        ("every", 20.0, "policy every with a greatest age of 20.0 ms"),
        ("drop-late", 0.0, "a greatest age of 0.0 ms; give the line's cycle time"),
        ("drop-late", float("nan"), "a greatest age of nan ms"),
    ],
)
def test_a_greatest_age_is_for_drop_late(policy: Policy, max_age_ms: float | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Stream(plain(1), policy=policy, max_age_ms=max_age_ms)
