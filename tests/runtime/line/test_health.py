"""Health and metrics over real HTTP, read by Prometheus' own parser."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sink_parts import wait_until

from rdedge.errors import SourceError, UsageError
from rdedge.events import Event
from rdedge.line.announcer import Announcer
from rdedge.line.health import Health, HealthServer
from rdedge.line.lane import LATENCY_BOUNDS_S, Lane
from rdedge.line.loop import Loop
from rdedge.sources.base import SourceInfo

GOOD, BAD = 204, 51


@pytest.fixture
def line(make_lane: Callable[..., Lane], scripted: Any, list_sink: Any) -> list[Lane]:
    """Two cameras after 20 frames each, one of which then failed."""
    failing = scripted([GOOD] * 20, error=SourceError('un\\plug"ged\n', remedy="plug it in"))
    sink = list_sink()
    sink.waiting = 7
    lanes = [make_lane(scripted([GOOD] * 17 + [BAD] * 3), name="top", sinks=(sink,)), make_lane(failing, name="side")]
    Loop(lanes, drain_s=1.0, on_tick=lambda _: None, on_shown=lambda *_: None).run()
    return lanes


@pytest.fixture
def server(line: list[Lane], monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthServer]:
    monkeypatch.setattr("rdedge.line.health._STALLED_S", 600.0)
    announcer = Announcer()
    announcer(Event(kind="silent", severity="error", text="x", camera='to"p'))
    server = HealthServer("127.0.0.1", 0, Health(line, announcer))
    yield server
    server.close()
    server.close()


def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type in ("counter", "gauge", "histogram") for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_prometheus_reads_every_count(server: HealthServer) -> None:
    status, kind, text = get(server, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    found = samples(text)
    top, side = (("camera", "top"),), (("camera", "side"),)
    for name, of_top, of_side in [
        ("frames_offered_total", 20, 20),
        ("frames_judged_total", 20, 20),
        ("frames_rejected_total", 3, 0),
        ("frames_dropped_total", 0, 0),
        ("frames_skipped_total", 0, 0),
        ("queue_length", 0, 0),
        ("camera_up", 1, 0),
        ("threshold", 0.5, 0.5),
        ("latency_seconds_count", 20, 20),
    ]:
        assert (found[f"rdedge_{name}", top], found[f"rdedge_{name}", side]) == (of_top, of_side), name
    assert 0 <= found["rdedge_last_verdict_age_seconds", top] < 60
    assert found["rdedge_sink_waiting", (("camera", "top"), ("sink", "ListSink"))] == 7
    assert found["rdedge_events_total", (("camera", 'to"p'), ("kind", "silent"))] == 1
    assert ("rdedge_drift_z", (("camera", "top"), ("quantity", "sharpness"))) in found


def test_the_histogram_is_cumulative_and_ends_at_infinity(server: HealthServer) -> None:
    found = samples(get(server, "/metrics")[2])
    bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
    counts = [found["rdedge_latency_seconds_bucket", (("camera", "top"), ("le", bound))] for bound in bounds]
    assert counts == sorted(counts) and counts[-1] == 20
    assert 0 < found["rdedge_latency_seconds_sum", (("camera", "top"),)] < 20 * 60


def test_health_says_which_camera_and_why(server: HealthServer, line: list[Lane]) -> None:
    status, kind, text = get(server, "/healthz?from=here")
    report = json.loads(text)
    assert (status, kind, report["ok"], report["loop"]) == (503, "application/json", False, "turning")
    assert report["cameras"]["top"]["faults"] == [] and report["cameras"]["side"]["faults"] == ['un\\plug"ged\n']
    line[1].fault = None
    assert get(server, "/healthz")[0] == 200
    line[0].source.info = SourceInfo(faults=("frozen",))  # type: ignore[misc]
    status, _, text = get(server, "/healthz")
    assert status == 503 and json.loads(text)["cameras"]["top"]["faults"] == ["frozen"]


def test_a_loop_that_stands_still_is_not_well(line: list[Lane], monkeypatch: pytest.MonkeyPatch) -> None:
    line[1].fault = None
    now_s = 1000.0
    monkeypatch.setattr("rdedge.line.health.time", SimpleNamespace(monotonic=lambda: now_s))
    health = Health(line, Announcer())
    now_s += 9.0
    assert health.report()[0]
    now_s += 2.0
    is_well, report = health.report()
    assert not is_well and report["loop"] == "stalled"
    health.pulse()
    assert health.report()[0]


def test_other_paths_and_taken_ports_are_refused(server: HealthServer, line: list[Lane]) -> None:
    assert get(server, "/")[0] == 404
    with pytest.raises(UsageError, match=r"metrics cannot be served at 127\.0\.0\.1 port"):
        HealthServer("127.0.0.1", server.port, Health(line, Announcer()))


def test_the_server_leaves_no_thread(line: list[Lane]) -> None:
    before = set(threading.enumerate())
    server = HealthServer("localhost", 0, Health(line, Announcer()))
    assert get(server, "/metrics")[0] == 200
    server.close()
    assert not server._thread.is_alive()
    wait_until(lambda: set(threading.enumerate()) <= before)  # that of the answer ends by itself
