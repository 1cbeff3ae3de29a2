"""An engine that runs for nothing while no part comes, and never in front of one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rdedge.backends.fake import FakeBackend
from rdedge.bundle import open_bundle
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.keep_warm import KeepWarm
from rdedge.line.lane import Lane, Settings
from rdedge.line.line import Line
from rdedge.line.loop import Loop
from rdedge.line.plan import make_plan

GOOD, WAIT_S = 204, 60.0


class Recorder(FakeBackend):
    """Notes when it ran, and whether on a real part."""

    def __init__(self, bundle: Path, **options: int):
        super().__init__(open_bundle(bundle).contract.graph, **options)
        self.runs: list[bool] = []

    def infer(self, frame_u8: Any) -> Any:
        self.runs.append(bool(np.any(frame_u8)))
        return super().infer(frame_u8)

    @property
    def idle_runs(self) -> int:
        return self.runs.count(False)


@pytest.fixture
def recorder(bundle: Path) -> Recorder:
    return Recorder(bundle)


@pytest.fixture
def warm(bundle: Path, recorder: Recorder) -> Callable[[float], KeepWarm]:
    return lambda every_s: KeepWarm([Inspector(open_bundle(bundle), recorder, "fp32")], every_s)


def test_it_runs_when_due_and_rests_after_a_part(
    warm: Callable[[float], KeepWarm], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("rdedge.line.keep_warm.time", SimpleNamespace(monotonic=lambda: now_s))
    keep_warm = warm(0.5)
    assert keep_warm.wait_s(10.0) == 0.5 and keep_warm.wait_s(0.001) == 0.001
    keep_warm.run()
    assert recorder.runs == [], "nothing was due"
    now_s += 0.5
    assert keep_warm.wait_s(10.0) == 0.0
    keep_warm.run()
    assert recorder.runs == [False] and keep_warm.wait_s(10.0) == 0.5
    now_s += 0.25
    keep_warm.rest()
    now_s += 0.25
    keep_warm.run()
    assert recorder.runs == [False] and keep_warm.wait_s(10.0) == 0.25, "a part came meanwhile"


def test_off_it_changes_no_wait_and_runs_nothing(warm: Callable[[float], KeepWarm], recorder: Recorder) -> None:
    keep_warm = warm(math.inf)
    assert keep_warm.wait_s(0.1) == 0.1
    keep_warm.run()
    assert recorder.runs == []


def test_engines_of_several_bundles_take_turns(bundle: Path) -> None:
    recorders = [Recorder(bundle), Recorder(bundle)]
    inspectors = [Inspector(open_bundle(bundle), recorder, "fp32") for recorder in recorders]
    keep_warm = KeepWarm([*inspectors, inspectors[0]], 0.0)
    for _ in range(4):
        keep_warm.run()
    assert [recorder.idle_runs for recorder in recorders] == [2, 2]


def test_an_engine_with_a_frame_under_way_is_left_alone(bundle: Path) -> None:
    recorder = Recorder(bundle, frames_in_flight=2)
    inspector = Inspector(open_bundle(bundle), recorder, "fp32")
    recorder.start(np.ones(inspector.bundle.contract.graph.frame.shape, np.uint8))
    KeepWarm([inspector], 0.0).run()
    assert recorder.runs == [True]


def run_loop(lane: Lane, keep_warm_s: float) -> None:
    Loop([lane], drain_s=1.0, on_tick=lambda _: None, on_shown=lambda *_: None, keep_warm_s=keep_warm_s).run()


@pytest.fixture
def paused(
    make_lane: Callable[..., Lane], scripted: Any, list_sink: Any, inspector: Inspector, recorder: Recorder
) -> tuple[Lane, Any, Any]:
    """Two parts, a pause that the test ends, two more."""
    inspector.backend = recorder
    source, sink = scripted([GOOD] * 4), list_sink()
    source.gates[2] = threading.Event()
    return make_lane(source, sinks=(sink,)), source, sink


def test_a_line_in_a_pause_runs_for_nothing_and_loses_nothing(
    paused: tuple[Lane, Any, Any], recorder: Recorder
) -> None:
    lane, source, sink = paused
    loop = threading.Thread(target=run_loop, args=(lane, 0.01))
    loop.start()
    deadline_s = time.monotonic() + WAIT_S
    while recorder.idle_runs < 5 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    source.gates[2].set()
    loop.join(WAIT_S)
    assert recorder.idle_runs >= 5 and sink.indices == [0, 1, 2, 3]
    assert (lane.counts.judged, lane.counts.rejected) == (4, 0), "black frames are no parts"
    assert sum(lane.latency.buckets) == 4


def test_the_pause_may_be_shorter_than_the_loops_tick(paused: tuple[Lane, Any, Any], recorder: Recorder) -> None:
    lane, source, _ = paused
    runs_at_ticks: list[int] = []

    def tick(_: bool) -> None:
        runs_at_ticks.append(recorder.idle_runs)
        if len(runs_at_ticks) == 10:
            source.gates[2].set()

    Loop([lane], drain_s=1.0, on_tick=tick, on_shown=lambda *_: None, keep_warm_s=0.001).run()
    assert runs_at_ticks[9] > 2 * 10, "one run a tick would be the tick's pace, not the setting's"


def test_a_line_without_the_setting_only_waits(paused: tuple[Lane, Any, Any], recorder: Recorder) -> None:
    lane, source, _ = paused
    loop = threading.Thread(target=run_loop, args=(lane, math.inf))
    loop.start()
    while lane.counts.judged < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    source.gates[2].set()
    loop.join(WAIT_S)
    assert recorder.runs == [True] * 4


def test_a_part_waits_for_one_inference_at_most(
    make_lane: Callable[..., Lane], scripted: Any, inspector: Inspector, recorder: Recorder
) -> None:
    """With an engine always due, frames that wait come first: between two of them it never runs for nothing."""
    inspector.backend = recorder
    source = scripted([GOOD] * 31)
    source.gates[1] = threading.Event()
    lane = make_lane(source, queue_size=31)

    def wait_for_the_rest(inspection: Inspection) -> None:
        if inspection.frame.index == 0:  # the loop is busy with the first: meanwhile the others come
            source.gates[1].set()
            while lane.counts.waiting < 30:
                time.sleep(0.01)

    lane.settings = Settings(rules=Rules(), sinks=(SimpleNamespace(write=wait_for_the_rest),))
    run_loop(lane, 0.0)
    first = recorder.runs.index(True)
    assert recorder.runs[first : first + 31] == [True] * 31


def test_the_setting_of_a_lines_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("rdedge.line.line.serve", lambda lanes, **options: seen.append(options["keep_warm_s"]) or [])
    for setting, _ in (("keep_warm_ms = 200\n", 0.2), ("", math.inf)):
        text = f'{setting}out = "out"\nbundle = "bundle"\nbackend = "fake"\n'
        text += '[[camera]]\nname = "top"\nuri = "folder:many"\npolicy = "every"\n'
        (site / "line.toml").write_text(text)
        with Line(make_plan(site / "line.toml")) as line:
            line.run(lambda lane, inspection: None)
    assert seen == [0.2, math.inf]
