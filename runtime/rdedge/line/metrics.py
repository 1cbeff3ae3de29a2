"""A line's state in numbers, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rdedge.board.thermal import Heat
from rdedge.line.announcer import Announcer
from rdedge.line.lane import LATENCY_BOUNDS_S, Lane
from rdedge.sinks import Sink

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Sample = tuple[dict[str, str], float]


def render(lanes: Sequence[Lane], announcer: Announcer, started_s: float, heat: Heat | None = None) -> str:
    """All metrics of one moment; from any thread. ``started_s``: time.monotonic of the line's start; ``heat``: the
    board's, where it says when it throttles."""
    counts = [(lane, lane.counts) for lane in lanes]
    infos = [(lane, lane.source.info) for lane in lanes]
    now_s = time.monotonic()

    def of(values: Iterable[tuple[Lane, float]]) -> list[_Sample]:
        return [({"camera": lane.name}, float(value)) for lane, value in values]

    verdicts = [(lane, lane.last_verdict_s) for lane in lanes]
    families = [
        _family("uptime_seconds", "gauge", "since the line was started", [({}, now_s - started_s)]),
        _family("frames_offered_total", "counter", "frames from the source", of((x, c.offered) for x, c in counts)),
        _family("frames_judged_total", "counter", "frames with a verdict", of((x, c.judged) for x, c in counts)),
        _family("frames_rejected_total", "counter", "verdicts: anomalous", of((x, c.rejected) for x, c in counts)),
        _family("frames_dropped_total", "counter", "dropped by the policy", of((x, c.dropped) for x, c in counts)),
        _family("frames_skipped_total", "counter", "came, but no verdict", of((x, c.skipped) for x, c in counts)),
        _family("frames_withheld_total", "counter", "no pictures of a part", of((x, i.withheld) for x, i in infos)),
        _family("frames_lost_total", "counter", "lost before they reached us", of((x, i.lost) for x, i in infos)),
        _family("camera_restarts_total", "counter", "camera opened again", of((x, i.restarts) for x, i in infos)),
        _family("camera_up", "gauge", "1: no fault", of((x, not i.faults and x.fault is None) for x, i in infos)),
        _family("camera_fault", "gauge", "faults present", _faults(lanes)),
        _family("queue_length", "gauge", "frames waiting", of((x, c.waiting) for x, c in counts)),
        _family(
            "last_verdict_age_seconds",
            "gauge",
            "since",
            of((x, now_s - at_s) for x, at_s in verdicts if at_s is not None),
        ),
        _family("threshold", "gauge", "image threshold", of((lane, threshold_of(lane)) for lane in lanes)),
        _family("bundle_info", "gauge", "1: what judges", [(_bundle_of(lane), 1.0) for lane in lanes]),
        _family("drift_z", "gauge", "mean deviation from held-out good parts", _drift(lanes)),
        _family("sink_waiting", "gauge", "records not yet delivered", _sinks(lanes, waiting_in)),
        _family("sink_lost_total", "counter", "records that could not be kept", _sinks(lanes, lost_by)),
        _family(
            "events_total",
            "counter",
            "events",
            [({"camera": camera, "kind": kind}, n) for (camera, kind), n in sorted(dict(announcer.counts).items())],
        ),
        *_latency(lanes),
        *(_heat(heat) if heat is not None else ()),
    ]
    return "".join(families)


def threshold_of(lane: Lane) -> float:
    """The image threshold in force."""
    threshold = lane.settings.rules.threshold
    return lane.inspector.threshold if threshold is None else threshold


def waiting_in(sink: Sink) -> int | None:
    """Records that a sink has yet to deliver; None where there is no such thing."""
    waiting = getattr(getattr(sink, "outbox", sink), "waiting", None)
    return waiting if isinstance(waiting, int) else None


def lost_by(sink: Sink) -> int | None:
    """Records that a sink could neither deliver nor keep; None where there is no such thing."""
    outbox = getattr(sink, "outbox", None)
    lost = getattr(sink, "lost", None) if outbox is None else outbox.counts.lost
    return lost if isinstance(lost, int) else None


def _family(name: str, kind: str, text: str, samples: Iterable[_Sample]) -> str:
    lines = [f"# HELP rdedge_{name} {text}", f"# TYPE rdedge_{name} {kind}"]
    lines += [f"rdedge_{name}{_labels(labels)} {value!r}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = {k: v.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for k, v in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def _bundle_of(lane: Lane) -> dict[str, str]:
    contract = lane.inspector.bundle.contract
    names = {"contract_sha256": contract.contract_sha256, "model": contract.model.name}
    return {"camera": lane.name, "precision": lane.inspector.precision, **names}


def _faults(lanes: Sequence[Lane]) -> Iterator[_Sample]:
    for lane in lanes:
        for kind in lane.source.info.faults:
            yield {"camera": lane.name, "kind": kind}, 1.0


def _drift(lanes: Sequence[Lane]) -> Iterator[_Sample]:
    for lane in lanes:
        for name, chart in lane.drift.charts.items() if lane.drift is not None else ():
            yield {"camera": lane.name, "quantity": name}, chart.mean_z


def _sinks(lanes: Sequence[Lane], value_of: Callable[[Sink], int | None]) -> Iterator[_Sample]:
    for lane in lanes:
        for sink in lane.settings.sinks:
            value = value_of(sink)
            if value is not None:
                yield {"camera": lane.name, "sink": type(sink).__name__}, float(value)


def _heat(heat: Heat) -> Iterator[str]:
    def by(label: str, values: Mapping[str, float]) -> list[_Sample]:
        return [({label: name}, float(value)) for name, value in values.items()]

    yield _family("temperature_celsius", "gauge", "of a thermal zone", by("zone", heat.temperatures_c))
    yield _family("throttled", "gauge", "1: slowed down for heat", by("part", heat.alerts))
    yield _family("over_current_total", "counter", "slowed down for a moment", by("cause", heat.over_currents))


def _latency(lanes: Sequence[Lane]) -> Iterator[str]:
    name = "rdedge_latency_seconds"
    yield f"# HELP {name} from a frame's capture to its verdict\n# TYPE {name} histogram\n"
    for lane in lanes:
        labels, buckets = {"camera": lane.name}, list(lane.latency.buckets)
        below = 0
        for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), buckets, strict=True):
            below += count
            yield f"{name}_bucket{_labels(labels | {'le': bound})} {below}\n"
        yield f"{name}_sum{_labels(labels)} {lane.latency.sum_s!r}\n{name}_count{_labels(labels)} {below}\n"
