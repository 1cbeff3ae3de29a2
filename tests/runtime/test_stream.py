"""The frame loop is bounded, ordered, counts its drops, hands over faults and always ends its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from rdedge.errors import ImageError, SourceError, UsageError
from rdedge.frames import Frame
from rdedge.sources import SourceInfo
from rdedge.stream import Policy, Stream

WAIT_S = 60.0


def frame(index: int) -> Frame:
    image = np.zeros((2, 2, 3), np.uint8)
    return Frame(image_bgr_u8=image, index=index, captured_at_s=time.monotonic(), source=f"{index}.png")


class Counting:
    """A source of so many frames that can be watched."""

    name = "counting"
    info = SourceInfo()

    def __init__(self, frames: int, error: Exception | None = None):
        self.skipped: list[ImageError] = []
        self.given = 0
        self.closed = 0
        self._frames, self._error = frames, error

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._frames):
            self.given = index + 1
            yield frame(index)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


class Blocking(Counting):
    """A camera without trigger: it gives one frame, then waits until it is closed."""

    def __init__(self) -> None:
        super().__init__(1)
        self.is_closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        yield frame(0)
        self.is_closed.wait(WAIT_S)
        raise SourceError("the device went away", remedy="plug it in")

    def close(self) -> None:
        super().close()
        self.is_closed.set()


def capture_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rdedge-capture"]


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that can end has all the time for it."""
    monkeypatch.setattr("rdedge.stream._JOIN_S", WAIT_S)
    yield
    assert capture_threads() == []


@pytest.mark.parametrize("queue_size", [1, 2, 100])
def test_every_frame_comes_in_order(queue_size: int) -> None:
    source = Counting(50)
    stream = Stream(source, queue_size=queue_size)
    assert [f.index for f in stream] == list(range(50))
    assert (stream.counts.offered, stream.counts.delivered, stream.counts.dropped) == (50, 50, 0)
    assert source.closed == 1


def test_it_says_whether_the_next_frame_is_here() -> None:
    stream = Stream(Blocking())
    assert not stream.has_frame
    frames = iter(stream)
    next(frames)
    assert not stream.has_frame, "the camera has not been triggered again"
    stream.close()
    stream = Stream(Counting(2))
    frames = iter(stream)
    next(frames)
    wait_until(lambda: stream.has_frame)
    stream.close()
    assert not stream.has_frame and list(frames) == []


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_no_frames_are_no_error(policy: Policy) -> None:
    assert list(Stream(Counting(0), policy=policy)) == []


def test_a_slow_consumer_holds_the_source_back() -> None:
    source = Counting(50)
    frames = iter(Stream(source, queue_size=3))
    assert next(frames).index == 0
    wait_until(lambda: source.given == 5)  # one delivered, three queued, one waits to be queued
    time.sleep(0.05)
    assert source.given == 5
    assert len(list(frames)) == 49


def test_latest_gives_the_newest_and_counts_what_it_drops() -> None:
    first_was_taken = threading.Event()

    class Camera(Counting):
        def __iter__(self) -> Iterator[Frame]:
            yield frame(0)
            first_was_taken.wait(WAIT_S)
            for index in range(1, 50):
                yield frame(index)

    stream = Stream(Camera(50), policy="latest")
    frames = iter(stream)
    assert next(frames).index == 0
    first_was_taken.set()
    wait_until(lambda: capture_threads() == [])  # the consumer is slow: all the others came meanwhile
    assert [f.index for f in frames] == [49]
    counts = stream.counts
    assert (counts.offered, counts.delivered, counts.dropped) == (50, 2, 48)


def test_counts_add_up_while_it_runs() -> None:
    stream = Stream(Counting(2000), policy="latest")
    indices = [f.index for f in stream]
    assert indices == sorted(set(indices)) and indices[-1] == 1999
    assert stream.counts.offered == 2000 == stream.counts.delivered + stream.counts.dropped
    assert stream.counts.delivered == len(indices)


@pytest.mark.parametrize("error", [SourceError("cable out", remedy="plug it in"), ValueError("a bug")])
def test_a_fault_of_the_source_comes_after_the_frames_before_it(error: Exception) -> None:
    source = Counting(3, error)
    seen = []
    with pytest.raises(type(error)) as caught:
        for f in Stream(source):
            seen.append(f.index)
    assert caught.value is error
    assert seen == [0, 1, 2] and source.closed == 1


def test_a_last_frame_that_comes_while_one_looks_for_it_is_taken_before_the_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()

    class Late(Counting):
        def __iter__(self) -> Iterator[Frame]:
            goes_on.wait(WAIT_S)
            yield from super().__iter__()

    stream = Stream(Late(1, SourceError("cable out", remedy="plug it in")))
    look = stream._next

    def look_too_early(*, waits: bool) -> Frame | None:
        found = look(waits=waits)
        goes_on.set()
        stream._thread.join(WAIT_S)
        return found

    monkeypatch.setattr(stream, "_next", look_too_early)
    stream.start()
    assert stream.take() is None
    last = stream.take()
    assert last is not None and last.index == 0
    with pytest.raises(SourceError, match="cable out"):
        stream.take()
    stream.close()


def test_a_fault_of_the_consumer_ends_the_thread() -> None:
    source = Counting(10**9)
    started_s = time.monotonic()
    with pytest.raises(RuntimeError, match="judge failed"):
        for _ in Stream(source):
            raise RuntimeError("judge failed")
    assert capture_threads() == [] and time.monotonic() - started_s < WAIT_S / 2
    assert source.closed == 1


def test_leaving_the_loop_ends_the_thread() -> None:
    source = Counting(10**9)
    for f in Stream(source):
        if f.index == 5:
            break
    assert capture_threads() == [] and source.closed == 1


def test_closing_while_the_source_blocks_ends_its_read() -> None:
    stream = Stream(Blocking())
    frames = iter(stream)
    next(frames)
    started_s = time.monotonic()
    stream.close()
    assert time.monotonic() - started_s < WAIT_S / 2
    assert list(frames) == [], "the fault of a closed source is nobody's business"


def test_closing_wakes_a_consumer_that_waits() -> None:
    stream = Stream(Blocking())
    seen: list[int] = []
    consumer = threading.Thread(target=lambda: seen.extend(f.index for f in stream))
    consumer.start()
    wait_until(lambda: stream.counts.delivered == 1)
    stream.close()
    consumer.join(WAIT_S)
    assert not consumer.is_alive() and seen == [0]


def test_a_source_that_cannot_be_interrupted_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdedge.stream._JOIN_S", 0.1)
    released = threading.Event()

    class Stuck(Counting):
        def __iter__(self) -> Iterator[Frame]:
            released.wait(WAIT_S)
            yield frame(0)

    stream = Stream(Stuck(1))
    frames = iter(stream)
    closing = threading.Timer(0.05, stream.close)
    closing.start()
    assert list(frames) == []
    assert len(capture_threads()) == 1 and capture_threads()[0].daemon
    closing.join(WAIT_S)
    released.set()
    wait_until(lambda: capture_threads() == [])
    assert stream.counts.offered == 0


def test_closing_before_the_first_frame_and_again_is_safe() -> None:
    source = Counting(3)
    stream = Stream(source)
    iter(stream)
    stream.close()
    stream.close()
    assert source.closed == 2 and source.given == 0
    assert list(stream) == [], "a closed stream gives nothing"


def test_a_stream_is_iterated_once() -> None:
    stream = Stream(Counting(3))
    assert len(list(stream)) == 3
    with pytest.raises(UsageError, match="iterated before; open the source and a stream again"):
        list(stream)


def test_a_queue_holds_something() -> None:
    with pytest.raises(UsageError, match="queue size 0; use at least 1"):
        Stream(Counting(1), queue_size=0)
