"""One camera of a line: its stream, its rules, its sinks, and what became of each of its frames."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rdedge.errors import ImageError, RdedgeError, SinkError
from rdedge.events import Event, EventHandler, Severity
from rdedge.frames import Frame
from rdedge.inspector import Inspection, Inspector, Prepared, Rules
from rdedge.line.debounce import KOfN, PartVerdict
from rdedge.line.drift import DriftWatch
from rdedge.preprocess import preprocess
from rdedge.sinks import Sink
from rdedge.sources import FrameSource
from rdedge.stream import Stream

LATENCY_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_DRIFT_EVERY_S = 1.0  # frames of one moment resemble each other and say the same


@dataclass(slots=True)
class Latency:
    """Histogram of seconds from a frame's capture to its verdict; the last bucket is open."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, latency_s: float) -> None:
        """One frame."""
        self.buckets[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        self.sum_s += latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneCounts:
    """At the end, offered = judged + dropped + skipped: ``skipped`` frames came and could not be judged, ``dropped``
    ones never got their turn, by the policy or because the line was stopped. ``rejected``: parts, of which each has a
    frame of its own, but for those with a name and a K-of-N rule. ``waiting``: queued at this moment."""

    offered: int
    judged: int
    rejected: int
    dropped: int
    skipped: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may be changed while the line runs: ``sinks`` get every verdict, ``actuators`` one for each part, where a
    K-of-N rule judges parts by several frames."""

    rules: Rules
    k_of_n: tuple[int, int] | None = None
    sinks: Sequence[Sink] = ()
    actuators: Sequence[Sink] = ()


class Lane:
    """Used from the thread of the line's loop; what metrics read is plain numbers."""

    def __init__(
        self,
        name: str,
        source: FrameSource,
        stream: Stream,
        inspector: Inspector,
        settings: Settings,
        *,
        on_event: EventHandler,
        forgives: bool,
    ):
        """``forgives``: a sink that fails is told of, not raised; else one fault ends the run."""
        self.name = name
        self.source = source
        self.stream = stream
        self.inspector = inspector
        self.settings = settings
        self.latency = Latency()
        self.last_verdict_s: float | None = None  # time.monotonic
        self.is_done = False
        self.fault: RdedgeError | None = None  # that ended it
        self.drift = _drift_watch(inspector, settings.rules)
        self._k_of_n = None if settings.k_of_n is None else KOfN(*settings.k_of_n)
        self._on_event = on_event
        self._forgives = forgives
        self._judged = self._rejected = self._skipped = 0
        self._left = 0
        self._failed_sinks: list[Sink] = []
        self._drift_at_s = float("-inf")

    @property
    def counts(self) -> LaneCounts:
        """Of one moment, but for the frame in work; from any thread."""
        stream = self.stream.counts
        return LaneCounts(
            offered=stream.offered,
            judged=self._judged,
            rejected=self._rejected,
            dropped=stream.dropped + self._left,
            skipped=self._skipped,
            waiting=stream.queued - self._left,
        )

    @property
    def is_accounted_for(self) -> bool:
        """Whether it is known why no frame comes: none is asked for, the camera is being reopened, or it is done."""
        info = self.source.info
        return self.is_done or info.is_triggered or bool(info.faults)

    def take(self) -> Frame | None:
        """A frame if one waits; the lane is done when none will come any more."""
        try:
            frame = self.stream.take()
        except RdedgeError as exc:
            self.fault = exc
            self.is_done = True
            if self._forgives:
                self._tell("ended", "error", f"the camera's frames ended: {exc}")
            return None
        if frame is None and self.stream.is_over:
            self.is_done = True
        return frame

    def prepare(self, frame: Frame) -> Prepared | None:
        """One frame as the engine takes it; None where it cannot be judged. Raises ImageError if not forgiven."""
        try:
            return self.inspector.prepare(frame, self.settings.rules)
        except ImageError as exc:
            self._skipped += 1
            if not self._forgives:
                raise
            self._tell("unjudged", "error", f"frame {frame.index} gets no verdict: {exc}")
            return None

    def accept(self, inspection: Inspection) -> Inspection:
        """A judged frame to the sinks. Raises what is not forgiven."""
        inspection = self._debounced(inspection)
        self._judged += 1
        decides = inspection.part is None or inspection.part.is_decided
        self._rejected += decides and inspection.verdict.is_anomalous
        self.last_verdict_s = time.monotonic()
        self.latency.add(self.last_verdict_s - inspection.frame.captured_at_s)
        if decides:
            for sink in self.settings.actuators:
                self._write(sink, inspection)
        for sink in self.settings.sinks:
            self._write(sink, inspection)
        self._watch_drift(inspection)
        return inspection

    def change(self, settings: Settings) -> None:
        """Other rules and sinks from the next frame on; the old sinks are the caller's to close."""
        if settings.k_of_n != self.settings.k_of_n:
            self._end_part()
            self._k_of_n = None if settings.k_of_n is None else KOfN(*settings.k_of_n)
        self.settings = settings
        self._failed_sinks.clear()

    def finish(self) -> LaneCounts:
        """After the last frame: release the source, count what was left behind, and hold the counts to account."""
        self.is_done = True
        self.stream.close()
        self._end_part()
        self._left = self.stream.counts.queued
        if self._left:
            self._tell(
                "left", "warning", f"{self._left} frames were waiting when the line stopped; they get no verdict"
            )
        counts = self.counts
        assert counts.waiting == 0, counts
        assert counts.offered == counts.judged + counts.dropped + counts.skipped, counts
        return counts

    def _debounced(self, inspection: Inspection) -> Inspection:
        if self._k_of_n is None:
            return inspection
        verdict = inspection.verdict
        part, before = self._k_of_n.add(inspection.frame.part_id, verdict.is_anomalous)
        self._report_part(before)
        return replace(inspection, part=part, verdict=replace(verdict, is_anomalous=part.is_reject))

    def _end_part(self) -> None:
        if self._k_of_n is not None:
            self._report_part(self._k_of_n.end())

    def _report_part(self, part: PartVerdict | None) -> None:
        """A part without all its frames has no verdict that a sink was given."""
        if part is None:
            return
        seen = f"part {part.part_id}: only {part.frames} of {part.of} frames were judged, {part.anomalous} anomalous"
        if part.is_reject:
            self._tell("part-incomplete", "error", f"{seen}; it may not pass as good")
        else:
            self._tell("part-incomplete", "warning", f"{seen}; good whatever the others showed")

    def _write(self, sink: Sink, inspection: Inspection) -> None:
        try:
            sink.write(inspection)
        except SinkError as exc:
            if not self._forgives:
                raise
            if sink not in self._failed_sinks:
                self._failed_sinks.append(sink)
                self._tell("sink-fault", "error", str(exc))
            return
        if sink in self._failed_sinks:
            self._failed_sinks.remove(sink)
            self._tell("sink-recovered", "info", f"{type(sink).__name__} takes verdicts again")

    def _watch_drift(self, inspection: Inspection) -> None:
        frame, verdict = inspection.frame, inspection.verdict
        if self.drift is None or frame.captured_at_s - self._drift_at_s < _DRIFT_EVERY_S:
            return
        self._drift_at_s = frame.captured_at_s
        frame_u8 = preprocess(frame.image_bgr_u8, self.inspector.bundle.contract.input)[0]
        score = verdict.score if verdict.graph_score is None else verdict.graph_score
        for change in self.drift.add(frame_u8, score):
            if change.is_drifting:
                self._tell("drift", "warning", change.text)
            else:
                self._tell("drift-over", "info", change.text)

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        self._on_event(Event(kind=kind, severity=severity, text=text, camera=self.name))


def _drift_watch(inspector: Inspector, rules: Rules) -> DriftWatch | None:
    """None with tiles: the held-out parts say nothing of a whole sensor."""
    if rules.tiling is not None:
        return None
    contract = inspector.bundle.contract
    return DriftWatch(contract.good_frames, contract.precisions[inspector.precision].good_scores)
