"""All cameras through one engine: in turn, in one thread, every frame accounted for, whatever befalls one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rdedge.errors import BackendError, ImageError, SinkError, SourceError
from rdedge.events import Event
from rdedge.inspector import Inspection, Rules
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.loop import Loop
from rdedge.line.masks import Mask
from rdedge.sources.base import SourceInfo

GOOD, BAD = 204, 51
WAIT_S = 60.0

MakeLane = Callable[..., Lane]
Scripted = Callable[..., Any]


def nothing(lane: Lane, inspection: Inspection) -> None:
    """Nobody watches."""


def run(*lanes: Lane, on_shown: Callable[[Lane, Inspection], None] = nothing) -> list[LaneCounts]:
    return Loop(lanes, drain_s=WAIT_S, on_tick=lambda is_alive: None, on_shown=on_shown).run()


def counted(counts: LaneCounts) -> tuple[int, int, int, int, int]:
    assert counts.waiting == 0
    return counts.offered, counts.judged, counts.rejected, counts.dropped, counts.skipped


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_every_frame_is_judged_in_order(make_lane: MakeLane, scripted: Scripted, list_sink: Any) -> None:
    sink = list_sink()
    (counts,) = run(make_lane(scripted([GOOD] * 30 + [BAD] + [GOOD] * 9), sinks=(sink,)))
    assert counted(counts) == (40, 40, 1, 0, 0)
    assert sink.indices == list(range(40))
    assert [i.frame.index for i in sink.got if i.verdict.is_anomalous] == [30]


def test_the_engine_is_used_from_one_thread(make_lane: MakeLane, scripted: Scripted, engine: Any) -> None:
    run(*(make_lane(scripted([GOOD] * 20), name=f"c{i}") for i in range(4)))
    assert engine.threads == {threading.get_ident()}


def test_cameras_are_served_in_turn(make_lane: MakeLane, scripted: Scripted) -> None:
    """A fast camera cannot keep a slow one waiting for more than one of its frames."""
    order: list[str] = []
    sources = [scripted([GOOD] * 40), scripted([GOOD] * 40), scripted([GOOD] * 40)]
    lanes = [make_lane(source, name=name, queue_size=50) for source, name in zip(sources, "abc", strict=True)]

    def note(lane: Lane, inspection: Inspection) -> None:
        if not order:  # all queues fill while the first is judged
            deadline_s = time.monotonic() + WAIT_S
            while any(other.stream.counts.offered < 40 for other in lanes) and time.monotonic() < deadline_s:
                time.sleep(0.001)
        order.append(lane.name)

    run(*lanes, on_shown=note)
    later = order[3:]
    assert all(sorted(later[i : i + 3]) == ["a", "b", "c"] for i in range(0, 105, 3)), "".join(order)


def test_a_dead_camera_leaves_the_others_timing_alone(
    make_lane: MakeLane, scripted: Scripted, inspector: Any, engine: Any
) -> None:
    """The age of a verdict beside a camera that hangs and one that fails is what it is alone. Ratios of medians: no
    machine's speed matters."""
    engine.pause_s = 0.004

    def median_age_ms(*others: Lane) -> float:
        source = scripted([GOOD] * 60)
        source.interval_s = 0.02
        healthy = make_lane(source, name="healthy", policy="latest")
        ages_ms = []

        def note(lane: Lane, inspection: Inspection) -> None:
            if lane is healthy:
                ages_ms.append((time.monotonic() - inspection.frame.captured_at_s) * 1e3)
            if lane is healthy and inspection.frame.index >= 50:
                for other in others:
                    other.source.close()

        run(healthy, *others, on_shown=note)
        return float(np.median(ages_ms))

    def beside_dead_ms() -> float:
        hanging, failing = scripted([GOOD] * 2), scripted([GOOD] * 3, error=SourceError("unplugged", remedy="plug in"))
        hanging.gates[1] = threading.Event()
        return median_age_ms(make_lane(hanging, name="hanging"), make_lane(failing, name="failing"))

    rounds = [(median_age_ms(), beside_dead_ms()) for _ in range(2)]
    alone, beside_dead = (min(ages_ms) for ages_ms in zip(*rounds, strict=True))
    assert beside_dead < 3.0 * alone


def test_a_camera_that_floods_goes_first_with_two_frames_at_most(
    make_lane: MakeLane, scripted: Scripted, engine: Any
) -> None:
    """The one in work when a frame of another camera comes, and one that waited before it."""
    engine.pause_s = 0.004
    flood = make_lane(scripted([GOOD] * 1_000_000), name="flood", policy="latest")
    source = scripted([GOOD] * 30)
    source.gates = {index: threading.Event() for index in range(1, 30)}
    flooded_at_s: list[float] = []
    went_first: list[int] = []

    def note(lane: Lane, inspection: Inspection) -> None:
        if lane is flood:
            flooded_at_s.append(time.monotonic())
            return
        went_first.append(sum(at_s > inspection.frame.captured_at_s for at_s in flooded_at_s))
        if inspection.frame.index < 29:
            source.gates[inspection.frame.index + 1].set()
        else:
            flood.source.close()

    run(make_lane(source), flood, on_shown=note)
    assert len(went_first) == 30 and 1 <= np.median(went_first) <= 3, went_first


def test_a_camera_that_fails_is_told_of_and_the_others_go_on(
    make_lane: MakeLane, scripted: Scripted, events: list[Event]
) -> None:
    error = SourceError("the device went away", remedy="plug it in")
    failing, healthy = make_lane(scripted([GOOD] * 3, error=error), name="a"), make_lane(scripted([GOOD] * 9), name="b")
    a, b = run(failing, healthy)
    assert counted(a) == (3, 3, 0, 0, 0) and counted(b) == (9, 9, 0, 0, 0)
    assert failing.fault is error and healthy.fault is None
    assert [(event.kind, event.camera) for event in events] == [("ended", "a")]


def test_latest_drops_are_counted_exactly(make_lane: MakeLane, scripted: Scripted, engine: Any) -> None:
    engine.pause_s = 0.002
    (counts,) = run(make_lane(scripted([GOOD] * 2000), policy="latest"))
    offered, judged, _, dropped, skipped = counted(counts)
    assert offered == 2000 == judged + dropped and dropped > 0 and skipped == 0 and judged >= 1


def test_a_frame_that_cannot_be_judged_is_skipped_and_told_of(
    make_lane: MakeLane, scripted: Scripted, events: list[Event], list_sink: Any
) -> None:
    source, sink = scripted([GOOD] * 6), list_sink()
    source.bad = {2, 5}
    lane = make_lane(source, rules=Rules(mask=Mask(roi_xywh=(0, 0, 64, 40))), sinks=(sink,))
    (counts,) = run(lane)
    assert counted(counts) == (6, 4, 0, 0, 2) and sink.indices == [0, 1, 3, 4]
    assert kinds(events) == ["unjudged", "unjudged"] and "frame 2 gets no verdict" in events[0].text


def test_without_forgiveness_the_first_fault_ends_the_run(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any
) -> None:
    source, sink = scripted([GOOD] * 9), list_sink()
    source.bad = {2}
    with pytest.raises(ImageError):
        run(make_lane(source, rules=Rules(mask=Mask(roi_xywh=(0, 0, 64, 40))), sinks=(sink,), forgives=False))
    assert sink.indices == [0, 1] and source.closed.is_set()
    sink.fails_at = {3}
    with pytest.raises(SinkError):
        run(make_lane(scripted([GOOD] * 9), sinks=(sink,), forgives=False))


def test_a_failing_sink_is_told_once_and_the_others_get_everything(
    make_lane: MakeLane, scripted: Scripted, events: list[Event], list_sink: Any
) -> None:
    first, second = list_sink(), list_sink()
    first.fails_at = {3, 4, 5}
    (counts,) = run(make_lane(scripted([GOOD] * 9), sinks=(first, second)))
    assert counted(counts) == (9, 9, 0, 0, 0)
    assert second.indices == list(range(9)) and first.indices == [0, 1, 2, 6, 7, 8]
    assert kinds(events) == ["sink-fault", "sink-recovered"]


def test_a_failing_engine_ends_the_line_and_releases_the_cameras(
    make_lane: MakeLane, scripted: Scripted, engine: Any
) -> None:
    source, other = scripted([GOOD] * 9), scripted([GOOD] * 9)
    engine.close()
    with pytest.raises(BackendError):
        run(make_lane(source, name="a"), make_lane(other, name="b"))
    assert source.closed.is_set() and other.closed.is_set()


def stopped_at(loop: Loop, index: int) -> Callable[[Lane, Inspection], None]:
    def note(lane: Lane, inspection: Inspection) -> None:
        if inspection.frame.index == index:
            deadline_s = time.monotonic() + WAIT_S
            while lane.stream.counts.queued < 4 and time.monotonic() < deadline_s:
                time.sleep(0.001)
            loop.stop()

    return note


def test_a_stop_judges_what_waits_and_nothing_more(make_lane: MakeLane, scripted: Scripted, list_sink: Any) -> None:
    source, sink = scripted([GOOD] * 1000), list_sink()
    lane = make_lane(source, sinks=(sink,))
    loop = Loop([lane], drain_s=WAIT_S, on_tick=lambda is_alive: None, on_shown=lambda *_: note(*_))
    note = stopped_at(loop, 10)
    (counts,) = loop.run()
    assert counted(counts) == (15, 15, 0, 0, 0), "the frame in work and the four that waited"
    assert sink.indices == list(range(15))


def test_what_is_not_judged_in_time_is_counted_and_told_of(
    make_lane: MakeLane, scripted: Scripted, events: list[Event]
) -> None:
    lane = make_lane(scripted([GOOD] * 1000))
    loop = Loop([lane], drain_s=0.0, on_tick=lambda is_alive: None, on_shown=lambda *_: note(*_))
    note = stopped_at(loop, 10)
    (counts,) = loop.run()
    assert counted(counts) == (15, 11, 0, 4, 0)
    assert [event.text for event in events] == ["4 frames were waiting when the line stopped; they get no verdict"]


@pytest.mark.parametrize(
    ("info", "is_known"),
    [
        (SourceInfo(), False),
        (SourceInfo(is_triggered=True), True),
        (SourceInfo(faults=("silent",)), True),
    ],
    ids=["silence without a reason", "no part yet", "being reopened"],
)
def test_the_watchdog_hears_of_verdicts_or_of_a_known_silence(
    make_lane: MakeLane, scripted: Scripted, info: SourceInfo, is_known: bool
) -> None:
    source = scripted([GOOD] * 5)
    source.gates[3] = threading.Event()
    source.info = replace(info)
    ticks: list[bool] = []

    def tick(is_alive: bool) -> None:
        ticks.append(is_alive)
        if len(ticks) == 10:
            source.gates[3].set()

    loop = Loop([make_lane(source)], drain_s=WAIT_S, on_tick=tick, on_shown=nothing)
    (counts,) = loop.run()
    assert counts.judged == 5 and len(ticks) >= 10
    assert ticks[4:10] == [is_known] * 6


def test_an_engine_that_hangs_feeds_no_watchdog(make_lane: MakeLane, scripted: Scripted, engine: Any) -> None:
    source = scripted([GOOD] * 5)
    source.info = SourceInfo(is_triggered=True)
    ticks_s: list[float] = []
    hung_s: list[float] = []
    infer = engine.infer

    def hang(frame_u8: Any) -> Any:
        if not hung_s:
            hung_s.append(time.monotonic())
            time.sleep(0.8)
            hung_s.append(time.monotonic())
        return infer(frame_u8)

    engine.infer = hang
    loop = Loop([make_lane(source)], drain_s=1.0, on_tick=lambda _: ticks_s.append(time.monotonic()), on_shown=nothing)
    loop.run()
    began_s, ended_s = hung_s
    assert ticks_s and not [at_s for at_s in ticks_s if began_s < at_s < ended_s], "no tick while the engine hangs"
