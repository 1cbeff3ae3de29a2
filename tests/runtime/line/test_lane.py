"""One camera's frames: parts judged by several of them, what sinks and actuators get, and drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.loop import Loop

GOOD, BAD = 204, 51

MakeLane = Callable[..., Lane]
Scripted = Callable[..., Any]


def run(lane: Lane) -> LaneCounts:
    (counts,) = Loop([lane], drain_s=20.0, on_tick=lambda is_alive: None, on_shown=lambda *_: None).run()
    return counts


def test_parts_are_decided_by_k_of_n_and_actuators_act_once(
    make_lane: MakeLane, scripted: Scripted, events: list[Event], list_sink: Any
) -> None:
    source = scripted([BAD, BAD, BAD, GOOD, BAD, GOOD, GOOD, GOOD, GOOD, BAD])
    source.part_ids = ["p1"] * 3 + ["p2"] * 3 + ["p3"] * 3 + ["p4"]
    sink, actuator = list_sink(), list_sink()
    lane = make_lane(source, k_of_n=(2, 3), sinks=(sink,), actuators=(actuator,), queue_size=10)
    counts = run(lane)
    assert (counts.judged, counts.rejected, counts.dropped) == (10, 1, 0)
    assert len(sink.got) == 10, "sinks are told of every frame"
    acted = [(i.frame.part_id, i.frame.index, i.verdict.is_anomalous) for i in actuator.got]
    assert acted == [("p1", 1, True), ("p2", 5, False), ("p3", 8, False)]
    assert [event.text for event in events] == [
        "part p4: only 1 of 3 frames were judged, 1 anomalous; it may not pass as good"
    ]


def test_a_part_that_was_good_whatever_was_lost_is_a_warning_alone(
    make_lane: MakeLane, scripted: Scripted, events: list[Event]
) -> None:
    source = scripted([GOOD, GOOD])
    source.part_ids = ["p1", "p1"]
    run(make_lane(source, k_of_n=(2, 3)))
    assert [(event.severity, event.text) for event in events] == [
        ("warning", "part p1: only 2 of 3 frames were judged, 0 anomalous; good whatever the others showed")
    ]


def test_without_k_of_n_actuators_act_on_each_frame(make_lane: MakeLane, scripted: Scripted, list_sink: Any) -> None:
    actuator = list_sink()
    run(make_lane(scripted([GOOD, BAD, GOOD]), actuators=(actuator,)))
    assert [i.verdict.is_anomalous for i in actuator.got] == [False, True, False]


def test_drift_is_watched_once_a_second_and_told(make_lane: MakeLane, scripted: Scripted, events: list[Event]) -> None:
    lane = make_lane(scripted([]))
    image = np.full((48, 64, 3), 250, np.uint8)  # the contract's good parts have 203 +- 10 %
    for second in range(60):
        for k in range(3):
            frame = Frame(image_bgr_u8=image, index=3 * second + k, captured_at_s=second + 0.1 * k, source="a")
            lane.accept(lane.inspector.inspect_frame(frame))
    told = {event.text.split()[0]: event for event in events if event.kind == "drift"}
    assert set(told) == {"brightness", "contrast", "sharpness", "score"}, "a flat white picture is nothing like a part"
    assert told["brightness"].severity == "warning" and told["brightness"].camera == "top"
    assert lane.drift is not None and lane.drift.charts["score"].mean_z == pytest.approx(
        -(3**0.5) * (1 - 0.98**60), abs=0.01
    )
