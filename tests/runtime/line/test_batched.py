"""Several cameras in one engine call, and two calls under way: the verdicts of one at a time, and nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdedge.backends import Backend, Prediction
from rdedge.backends.fake import FakeBackend
from rdedge.bundle import open_bundle
from rdedge.errors import BackendError, ImageError
from rdedge.events import Event
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.loop import Loop
from rdedge.line.masks import Mask
from rdedge.line.tiles import Tiling

GOOD, BAD = 204, 51
WAIT_S = 60.0
SMALL = Rules(mask=Mask(roi_xywh=(0, 0, 64, 40)))  # which bad frames of a scripted source are too small for

MakeLane = Callable[..., Lane]
Scripted = Callable[..., Any]


class Engine(FakeBackend):
    """Counts calls and batches under way; does what it is told before the call of a number.

    As TensorRT, it computes nothing on the side while batches are under way.
    """

    def __init__(self, bundle: Path, frames_in_flight: int):
        super().__init__(open_bundle(bundle).contract.graph, frames_in_flight=frames_in_flight)
        self.calls = self.most_under_way = 0
        self.gates: dict[int, Callable[[], object]] = {}
        self._is_starting = False

    def infer(self, frame_u8: np.ndarray) -> Prediction:
        assert self._is_starting or not self.under_way
        self.calls += 1
        self.gates.get(self.calls, lambda: None)()
        return super().infer(frame_u8)

    def start(self, frame_u8: np.ndarray) -> None:
        self._is_starting = True
        try:
            super().start(frame_u8)
        finally:
            self._is_starting = False
        self.most_under_way = max(self.most_under_way, self.under_way)


@pytest.fixture(params=[(1, 1), (4, 1), (1, 2), (4, 2)], ids=lambda p: f"batch {p[0]}, {p[1]} in flight")
def kind(request: pytest.FixtureRequest) -> tuple[int, int]:
    batch: tuple[int, int] = request.param
    return batch


@pytest.fixture
def bundle(write_bundle: Callable[..., Path], kind: tuple[int, int]) -> Path:
    return write_bundle(batch=kind[0])


@pytest.fixture
def engine(bundle: Path, kind: tuple[int, int]) -> Engine:
    return Engine(bundle, kind[1])


def nothing(lane: Lane, inspection: Inspection) -> None:
    """Nobody watches."""


def run(*lanes: Lane, on_shown: Callable[[Lane, Inspection], None] = nothing) -> list[LaneCounts]:
    return Loop(lanes, drain_s=WAIT_S, on_tick=lambda is_alive: None, on_shown=on_shown).run()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert condition()


def test_each_camera_gets_the_verdicts_it_gets_alone(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any, write_bundle: Callable[..., Path]
) -> None:
    """Frames of cameras with rules of their own, mixed as they come."""
    rules = {
        "a": Rules(),
        "b": Rules(threshold=0.1),
        "c": Rules(min_area_px=4000),
        "d": Rules(tiling=Tiling(tile_wh=(64, 48), overlap_px=0), mask=Mask(ignored=(((0, 0), (70, 0), (0, 70)),))),
    }
    levels = {name: np.random.default_rng(seed).integers(20, 240, 50).tolist() for seed, name in enumerate(rules)}
    sizes = {name: (96, 128) if name == "d" else (48, 64) for name in rules}
    sinks = {name: list_sink() for name in rules}
    lanes = [
        make_lane(scripted(levels[name], size_hw=sizes[name]), name=name, rules=rules[name], sinks=(sinks[name],))
        for name in rules
    ]
    counts = run(*lanes)
    with Inspector.open(write_bundle("single"), backend="fake") as alone:
        for name, count in zip(rules, counts, strict=True):
            got = sinks[name].got
            assert sinks[name].indices == list(range(50)) and count.judged == 50
            expected = [alone.inspect_frame(inspection.frame, rules[name]).verdict for inspection in got]
            assert [inspection.frame.image_bgr_u8[0, 0, 0] for inspection in got] == levels[name]
            for inspection, verdict in zip(got, expected, strict=True):
                assert inspection.verdict.score == pytest.approx(verdict.score, abs=1e-6)
                assert inspection.verdict.is_anomalous == verdict.is_anomalous
                assert inspection.verdict.regions == verdict.regions
                assert np.allclose(inspection.verdict.anomaly_map, verdict.anomaly_map, atol=1e-6)


def test_what_is_here_shares_a_call_in_turn(
    make_lane: MakeLane, scripted: Scripted, engine: Engine, kind: tuple[int, int]
) -> None:
    batch, in_flight = kind
    lanes = [make_lane(scripted([GOOD] * 40), name=name, queue_size=50) for name in "abc"]
    engine.gates[1] = lambda: until(lambda: all(lane.stream.counts.offered == 40 for lane in lanes))
    order: list[str] = []
    run(*lanes, on_shown=lambda lane, inspection: order.append(lane.name))
    assert engine.calls <= 1 + -(-119 // batch), "but for the first, full batches"
    assert engine.most_under_way == (0 if in_flight == 1 else 2)
    later = order[4:]  # the first call took what was there while the queues filled
    assert all(sorted(later[i : i + 3]) == ["a", "b", "c"] for i in range(99)), "".join(order)


def test_a_frame_never_waits_for_others_to_fill_its_batch(make_lane: MakeLane, scripted: Scripted) -> None:
    """The next frame comes only after the verdict of this one; beside it one camera hangs and one has ended."""
    source, hanging = scripted([GOOD] * 12), scripted([GOOD] * 2)
    source.gates = {index: threading.Event() for index in range(1, 12)}
    hanging.gates[1] = threading.Event()
    waited: list[bool] = []

    def note(lane: Lane, inspection: Inspection) -> None:
        index = inspection.frame.index
        if lane.name == "top" and index < 11:
            waited.append(source.gates[index + 1].is_set())
            source.gates[index + 1].set()
        elif lane.name == "top":
            until(lambda: hanging_lane.stream.counts.offered == 1)
            hanging.close()

    hanging_lane = make_lane(hanging, name="hanging")
    counts = run(make_lane(source), hanging_lane, make_lane(scripted([]), name="e"), on_shown=note)
    assert [count.judged for count in counts] == [12, 1, 0] and waited == [False] * 11


def test_a_frame_that_cannot_be_judged_costs_the_others_nothing(
    make_lane: MakeLane, scripted: Scripted, events: list[Event], list_sink: Any
) -> None:
    source, sink, other = scripted([GOOD] * 30), list_sink(), list_sink()
    source.bad = {0, 7, 8, 29}
    counts = run(
        make_lane(source, rules=SMALL, sinks=(sink,)), make_lane(scripted([BAD] * 30), name="b", sinks=(other,))
    )
    assert [(count.judged, count.skipped) for count in counts] == [(26, 4), (30, 0)]
    assert sink.indices == [i for i in range(30) if i not in source.bad] and other.indices == list(range(30))
    assert [event.kind for event in events] == ["unjudged"] * 4


def test_an_unforgiven_frame_ends_the_run_after_those_before_it(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any, engine: Engine
) -> None:
    source, sink = scripted([GOOD] * 9), list_sink()
    source.bad = {6}
    lane = make_lane(source, rules=SMALL, sinks=(sink,), queue_size=20, forgives=False)
    engine.gates[1] = lambda: until(lambda: lane.stream.counts.offered == 9)
    with pytest.raises(ImageError, match="the picture is 16x16"):
        run(lane)
    assert sink.indices == list(range(6))


def test_an_engine_that_fails_takes_no_verdict_but_its_own(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any, engine: Engine, kind: tuple[int, int]
) -> None:
    batch, _ = kind
    sink = list_sink()
    lane = make_lane(scripted([GOOD] * 60), sinks=(sink,), queue_size=80)
    engine.gates[1] = lambda: until(lambda: lane.stream.counts.offered == 60)

    def fail() -> None:
        raise BackendError("the third call fails", remedy="-")

    engine.gates[3] = fail
    with pytest.raises(BackendError, match="third call"):
        run(lane)
    first = len(sink.got) - batch
    assert 1 <= first <= batch and sink.indices == list(range(len(sink.got))), "two calls before it"


def test_a_stop_judges_what_is_under_way_and_what_waits(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any
) -> None:
    sinks = [list_sink(), list_sink()]
    lanes = [make_lane(scripted([GOOD] * 1000), name=f"c{i}", sinks=(sink,)) for i, sink in enumerate(sinks)]
    loop = Loop(lanes, drain_s=WAIT_S, on_tick=lambda is_alive: None, on_shown=lambda *_: note(*_))

    def note(lane: Lane, inspection: Inspection) -> None:
        if inspection.frame.index == 10:
            loop.stop()

    for sink, count in zip(sinks, loop.run(), strict=True):
        assert count.offered == count.judged < 1000 and sink.indices == list(range(count.judged))


def test_without_time_to_drain_what_is_under_way_is_still_judged(
    make_lane: MakeLane, scripted: Scripted, events: list[Event]
) -> None:
    lane = make_lane(scripted([GOOD] * 1000))
    loop = Loop([lane], drain_s=0.0, on_tick=lambda is_alive: None, on_shown=lambda *_: note(*_))

    def note(lane: Lane, inspection: Inspection) -> None:
        if inspection.frame.index == 10:
            until(lambda: lane.stream.counts.queued == 4)
            loop.stop()

    (count,) = loop.run()
    assert count.judged + count.dropped == count.offered and count.judged >= 11 and count.waiting == 0
    assert [event.kind for event in events] in ([], ["left"]) and lane.inspector.under_way == 0


@pytest.fixture
def other_inspector(write_bundle: Callable[..., Path], kind: tuple[int, int]) -> Iterator[Inspector]:
    bundle = open_bundle(write_bundle("other", batch=kind[0], size_hw=(32, 32)))
    backend: Backend = FakeBackend(bundle.contract.graph, frames_in_flight=kind[1])
    with Inspector(bundle, backend, "fp32") as inspector:
        yield inspector


def test_engines_of_their_own_are_not_mixed(
    make_lane: MakeLane, scripted: Scripted, list_sink: Any, other_inspector: Inspector
) -> None:
    sinks = [list_sink() for _ in range(4)]
    lanes = [make_lane(scripted([GOOD, BAD] * 15), name=f"c{i}", sinks=(sink,)) for i, sink in enumerate(sinks)]
    for lane in lanes[2:]:
        lane.inspector = other_inspector
    run(*lanes)
    for sink, size_hw in zip(sinks, [(48, 64)] * 2 + [(32, 32)] * 2, strict=True):
        assert [i.verdict.is_anomalous for i in sink.got] == [False, True] * 15
        assert {i.verdict.anomaly_map.shape for i in sink.got} == {size_hw}
