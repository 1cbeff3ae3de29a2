"""One phase of a measurement: frames through the line's own loop, stream, lane, inspector and sinks, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rdedge.bench.frames import PacedSource
from rdedge.bench.record import CAPTURE, DEVICE, ENGINE, JUDGE, PREPROCESS, QUEUE, SINKS, WHOLE, Phase
from rdedge.bench.tegra import BoardSample, summarise
from rdedge.events import tell
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.lane import Lane, Settings
from rdedge.line.loop import Loop
from rdedge.sinks import Sink
from rdedge.stream import Policy, Stream

_DRAIN_S = 10.0
_KEEP_WARM_S = 0.1


@runtime_checkable
class DeviceClock(Protocol):
    """A backend that knows by its device's own events what a frame took."""

    device_ms: float  # of the last frame finished: copies and inference

    def parts_ms(self, frame_u8: NDArray[np.uint8]) -> tuple[float, float, float]:
        """Upload, inference and download of one frame."""


@dataclass(frozen=True, slots=True)
class _Seen:
    index: int
    captured_at_s: float
    verdict_at_s: float
    times_ms: dict[str, float]
    is_rejected: bool


class _TimedSinks:
    """All sinks of the lane as one; ``last_ms``: what they took for the last verdict."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = sinks
        self.last_ms = 0.0

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        started = time.perf_counter()
        for sink in self._sinks:
            sink.write(inspection)
        self.last_ms = (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """See Sink.close."""
        for sink in self._sinks:
            sink.close()


def run_phase(
    name: str,
    inspector: Inspector,
    source: PacedSource,
    sinks: Sequence[Sink],
    *,
    policy: Policy,
    warm_up: int,
    keeps_warm: bool = False,
    board: Sequence[BoardSample] = (),
) -> Phase:
    """Offers the source's frames as `rdedge run` does; the first ``warm_up`` are reported apart.

    ``keeps_warm``: as a line with ``keep_warm_ms``; a part that comes while the engine runs for nothing waits for it.
    ``board``: grows while the phase runs. Raises RdedgeError.
    """
    seen: list[_Seen] = []
    timed = _TimedSinks(sinks)
    stream = Stream(source, policy=policy)
    lane = Lane("", source, stream, inspector, Settings(rules=Rules(), sinks=[timed]), on_event=tell, forgives=False)

    def note(lane: Lane, inspection: Inspection) -> None:
        assert lane.last_verdict_s is not None
        seen.append(_seen(inspection, source, lane.last_verdict_s, timed.last_ms, inspector))
        source.verdict_is_out()

    keep_warm_s = _KEEP_WARM_S if keeps_warm else math.inf
    loop = Loop([lane], drain_s=_DRAIN_S, on_tick=_nothing, on_shown=note, keep_warm_s=keep_warm_s)
    (counts,) = loop.run()
    if lane.fault is not None:
        raise lane.fault
    return _phase(name, seen, warm_up, counts.offered, counts.dropped, source.info.lost, board)


def _nothing(is_alive: bool) -> None:
    """No watchdog to feed."""


def _seen(
    inspection: Inspection, source: PacedSource, verdict_at_s: float, sinks_ms: float, inspector: Inspector
) -> _Seen:
    frame, times = inspection.frame, inspection.times
    whole_ms = (verdict_at_s - frame.captured_at_s) * 1e3
    times_ms = {
        CAPTURE: source.capture_ms.pop(frame.index),
        QUEUE: whole_ms - times.total_ms,
        PREPROCESS: times.preprocess_ms,
        ENGINE: times.infer_ms,
        JUDGE: times.judge_ms,
        SINKS: sinks_ms,
        WHOLE: whole_ms,
    }
    if isinstance(inspector.backend, DeviceClock):
        times_ms[DEVICE] = inspector.backend.device_ms
    return _Seen(frame.index, frame.captured_at_s, verdict_at_s, times_ms, inspection.verdict.is_anomalous)


def _phase(
    name: str, seen: list[_Seen], warm_up: int, offered: int, dropped: int, lost: int, board: Sequence[BoardSample]
) -> Phase:
    measured = [each for each in seen if each.index >= warm_up]
    began_s = measured[0].captured_at_s if measured else 0.0
    ended_s = measured[-1].verdict_at_s if measured else 0.0
    return Phase(
        name=name,
        times_ms=_columns(measured),
        warm_up_ms=_columns([each for each in seen if each.index < warm_up]),
        at_s=[round(each.captured_at_s - began_s, 6) for each in measured],
        seconds=ended_s - began_s,
        offered=offered,
        judged=len(seen),
        dropped=dropped,
        rejected=sum(each.is_rejected for each in seen),
        lost=lost,
        board=summarise(list(board), began_s=began_s, ended_s=ended_s, verdicts=len(measured)),
    )


def _columns(seen: list[_Seen]) -> dict[str, list[float]]:
    stages = seen[0].times_ms if seen else ()
    return {stage: [round(each.times_ms[stage], 4) for each in seen] for stage in stages}


def device_parts(inspector: Inspector, times: int) -> dict[str, list[float]]:
    """Upload, inference and download of blank frames by the device's events; empty where the backend has none."""
    backend = inspector.backend
    if not isinstance(backend, DeviceClock):
        return {}
    blank_u8 = np.zeros(inspector.bundle.contract.graph.frame.shape, np.uint8)
    parts = [backend.parts_ms(blank_u8) for _ in range(times)]
    return {name: [round(part[i], 4) for part in parts] for i, name in enumerate(("upload", "inference", "download"))}
