"""A stream served beside others: frames are taken without waiting, and its owner is called when there is something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rdedge.errors import SourceError, UsageError
from rdedge.stream import Stream

WAIT_S = 20.0
Scripted = Callable[..., Any]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_frames_are_taken_in_order_without_waiting(scripted: Scripted) -> None:
    source = scripted([1, 2, 3])
    source.gates[1] = threading.Event()
    called: list[int] = []
    stream = Stream(source)
    assert stream.take() is None and not stream.is_over
    stream.start(lambda: called.append(stream.counts.queued))
    wait_until(lambda: len(called) == 1)
    first = stream.take()
    assert first is not None and first.index == 0
    assert stream.take() is None and not stream.is_over, "the camera waits, the caller does not"
    source.gates[1].set()
    wait_until(lambda: len(called) == 4)  # three frames and the end
    assert [frame.index for frame in iter(stream.take, None)] == [1, 2]
    assert stream.is_over
    stream.close()


def test_a_fault_comes_after_the_frames_before_it_and_once(scripted: Scripted) -> None:
    stream = Stream(scripted([1, 2], error=SourceError("unplugged", remedy="plug it in")))
    stream.start()
    wait_until(lambda: stream.counts.queued == 2)
    assert [stream.take() is not None for _ in range(2)] == [True, True]
    assert not stream.is_over
    wait_until(lambda: threading.active_count() >= 1 and not stream._thread.is_alive())
    with pytest.raises(SourceError, match="unplugged"):
        stream.take()
    assert stream.take() is None and stream.is_over
    stream.close()


def test_what_is_queued_can_be_taken_after_a_stop(scripted: Scripted) -> None:
    source = scripted([1] * 100)
    stream = Stream(source, queue_size=3)
    stream.start()
    wait_until(lambda: stream.counts.queued == 3)
    stream.stop()
    assert source.closed.is_set() and not stream.is_over
    assert [frame.index for frame in iter(stream.take, None)] == [0, 1, 2]
    assert stream.is_over
    stream.close()
    counts = stream.counts
    assert (counts.offered, counts.delivered, counts.dropped, counts.queued) == (3, 3, 0, 0)


def test_what_nobody_took_is_counted_as_queued(scripted: Scripted) -> None:
    stream = Stream(scripted([1] * 100), queue_size=3)
    stream.start()
    wait_until(lambda: stream.counts.queued == 3)
    stream.close()
    assert stream.counts.offered == stream.counts.queued == 3


def test_a_stream_is_started_once(scripted: Scripted) -> None:
    stream = Stream(scripted([1]))
    stream.start()
    with pytest.raises(UsageError, match="iterated before"):
        stream.start()
    with pytest.raises(UsageError, match="iterated before"):
        next(iter(stream))
    stream.close()
