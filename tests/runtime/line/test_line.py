"""A line from its file: verdicts to its sinks, settings that change while it runs, and ends that lose nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_port import free_port
from sink_parts import wait_until

from rdedge.cli import main
from rdedge.errors import UsageError
from rdedge.inspector import Inspection
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.line import Line
from rdedge.line.plan import make_plan
from rdedge.sources import WatchLimits

HEAD = 'out = "out"\nbundle = "bundle"\nbackend = "fake"\ndrain_s = 120\n'

Shown = Callable[[Lane, Inspection], None]


def camera(name: str, more: str = "") -> str:
    return f'[[camera]]\nname = "{name}"\nuri = "folder:many"\npolicy = "every"\n{more}\n'


@pytest.fixture
def open_line(site: Path) -> Iterator[Callable[[str], Line]]:
    opened: list[Line] = []

    def open_text(text: str) -> Line:
        (site / "line.toml").write_text(text)
        opened.append(Line(make_plan(site / "line.toml")))
        return opened[-1]

    before = set(threading.enumerate())
    yield open_text
    for line in opened:
        line.close()
    wait_until(lambda: set(threading.enumerate()) <= before)


def records(site: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (site / "out" / name / "verdicts.jsonl").read_bytes().splitlines()]


def nothing(lane: Lane, inspection: Inspection) -> None:
    """Nobody watches."""


def at(index: int, name: str, act: Callable[[], None]) -> Shown:
    def note(lane: Lane, inspection: Inspection) -> None:
        if lane.name == name and inspection.frame.index == index:
            act()

    return note


def told(line: Line) -> list[tuple[str, str, str]]:
    return [(event.kind, event.severity, event.text) for event in line.announcer.last]


def test_two_cameras_have_rules_and_sinks_of_their_own(site: Path, open_line: Callable[[str], Line]) -> None:
    text = HEAD + "[sinks.jsonl]\n[sinks.pictures]\nsample_good = 100\n"
    line = open_line(text + camera("top") + camera("side", "threshold = 0.9\n[camera.sinks.jsonl]"))
    top, side = line.run(nothing)
    assert top == LaneCounts(offered=400, judged=400, rejected=40, dropped=0, skipped=0, waiting=0)
    assert side == LaneCounts(offered=400, judged=400, rejected=0, dropped=0, skipped=0, waiting=0)
    assert [r["index"] for r in records(site, "top")] == list(range(400)) == [r["index"] for r in records(site, "side")]
    assert {r["session"] for r in records(site, "top")} == {line.session}
    pictures = sorted(p.name for p in (site / "out/top/rejects" / line.session).iterdir() if p.is_file())
    assert len(pictures) == 40 and pictures[1] == "000010_0010.jpg"
    assert not (site / "out/side/rejects").exists()


def test_masks_and_k_of_n_come_from_the_file(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(
        HEAD
        + camera("masked", "ignore = [[[28, 18], [40, 18], [40, 30], [28, 30]]]")
        + camera("small", "min_area_px = 65")
        + camera("outside", "roi_xywh = [0, 0, 20, 48]")
        + camera("debounced", "k_of_n = [2, 3]")
        + camera("tiled", "tiles = { tile_wh = [32, 32], overlap_px = 8 }")
    )
    counts = dict(zip((lane.name for lane in line.lanes), line.run(nothing), strict=True))
    assert {name: c.rejected for name, c in counts.items()} == {
        "masked": 0, "small": 0, "outside": 0, "debounced": 0, "tiled": 40,
    }  # fmt: skip


def decided_and_measured(record: dict[str, Any]) -> tuple[list[object], list[float]]:
    """What batches may not change at all, and scores and peaks, which they may in the last digits."""
    regions = record["regions"]
    boxes = [(region["box_xywh"], region["area_px"]) for region in regions]
    return [record["index"], record["verdict"], boxes], [record["score"], *(region["peak"] for region in regions)]


def test_cameras_share_the_calls_of_a_bundle_for_batches(
    site: Path, open_line: Callable[[str], Line], write_bundle: Callable[..., Path]
) -> None:
    write_bundle("batched", batch=4)
    cameras = camera("a") + camera("b", "threshold = 0.9") + camera("c", "k_of_n = [2, 3]")
    head = HEAD.replace("fake", "onnxruntime") + "[sinks.jsonl]\n"
    for name in ("bundle", "batched"):
        line = open_line(head.replace('"bundle"', f'"{name}"').replace('"out"', f'"out/{name}"') + cameras)
        assert [(count.judged, count.rejected) for count in line.run(nothing)] == [(400, 40), (400, 0), (400, 0)]
    for name in "abc":
        one, many = (
            [decided_and_measured(record) for record in records(site, f"{bundle}/{name}")]
            for bundle in ("bundle", "batched")
        )
        assert [decided for decided, _ in many] == [decided for decided, _ in one]
        for (_, measured), (_, expected) in zip(many, one, strict=True):
            assert measured == pytest.approx(expected, abs=1e-6)


def test_a_camera_is_watched_as_the_file_says(site: Path, open_line: Callable[[str], Line]) -> None:
    address = f'uri = "rtsp://127.0.0.1:{free_port()}/x"'
    cameras = camera("top", "watch = { retry_s = 0.01, retry_cap_s = 0.02 }") + camera("side")
    line = open_line(HEAD + cameras.replace('uri = "folder:many"', address))
    expected = [replace(WatchLimits(), retry_s=0.01, retry_cap_s=0.02), WatchLimits()]
    assert [lane.source._limits for lane in line.lanes] == expected  # type: ignore[attr-defined]


def test_a_record_says_by_which_frames_a_part_was_judged(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(HEAD + "[sinks.jsonl]\n" + camera("plain") + camera("debounced", "k_of_n = [1, 2]"))
    line.run(nothing)
    assert all(record["part"] is None for record in records(site, "plain"))
    judged = [(r["verdict"], r["part"]) for r in records(site, "debounced")[9:12]]
    assert [(word, part["anomalous"], part["frames"]) for word, part in judged] == [  # type: ignore[index]
        ("good", 0, 2),
        ("anomalous", 1, 2),
        ("anomalous", 1, 2),
    ]


def test_the_command_says_what_became_of_every_frame(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (site / "line.toml").write_text(HEAD + camera("top"))
    assert main(["run", "--line", str(site / "line.toml")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == "top: 400 frames = 400 judged (40 rejected) + 0 dropped + 0 skipped"


def test_a_camera_that_ends_in_a_fault_ends_the_command_with_it(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (site / "many" / "0005.png").unlink()
    (site / "many" / "0005.png").write_bytes(b"no picture")
    (site / "line.toml").write_text(HEAD + camera("top"))
    assert main(["run", "--line", str(site / "line.toml")]) == 2
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "top: 5 frames = 5 judged (1 rejected) + 0 dropped + 0 skipped"
    assert err.splitlines()[0].startswith("rdedge: error: top: the camera's frames ended: ")
    assert err.splitlines()[-1].startswith("rdedge: error: ") and "0005.png" in err


def test_sighup_changes_rules_and_sinks_without_losing_a_frame(site: Path, open_line: Callable[[str], Line]) -> None:
    before = HEAD + camera("top", "[camera.sinks.jsonl]")
    after = HEAD.replace("120", "130") + camera("top", "threshold = 0.9\nqueue_size = 9\n") + camera("new")
    line = open_line(before)

    def change() -> None:
        (site / "line.toml").write_text(after)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.15)  # beyond the next tick

    (counts,) = line.run(at(100, "top", change))
    assert counts.judged == 400 and 11 <= counts.rejected <= 12, "the threshold of 0.9 holds from then on"
    assert len(records(site, "top")) in (101, 102), "the sink is gone"
    (event,) = told(line)
    assert event[:2] == ("config", "warning")
    assert event[2].startswith(f"{site / 'line.toml'} was read again; these wait for a restart: drain_s, camera new, ")
    assert event[2].endswith("queue_size of camera top")


def test_sighup_changes_masks_and_k_of_n(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(HEAD + camera("top") + camera("side"))
    judged: list[int] = []

    def change() -> None:
        judged.append(line.lanes[1].counts.judged)
        more = "ignore = [[[28, 18], [40, 18], [40, 30], [28, 30]]]"
        (site / "line.toml").write_text(HEAD + camera("top", more) + camera("side", "k_of_n = [2, 2]"))
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.15)

    top, side = line.run(at(95, "top", change))
    assert top.rejected == 10 and side.rejected == -(-judged[0] // 10), "none after the change"
    assert top.judged == side.judged == 400
    assert [event[:2] for event in told(line)] == [("config", "info")]


@pytest.mark.parametrize("text", ["", HEAD, HEAD + camera("top", "threshold = nan"), HEAD.replace("bundle", "b")])
def test_a_new_file_with_errors_changes_nothing(site: Path, open_line: Callable[[str], Line], text: str) -> None:
    line = open_line(HEAD + camera("top", "[camera.sinks.jsonl]"))

    def change() -> None:
        (site / "line.toml").write_text(text)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.15)

    (counts,) = line.run(at(100, "top", change))
    assert (counts.judged, counts.rejected, len(records(site, "top"))) == (400, 40, 400)
    (event,) = told(line)
    assert event[:2] == ("config", "error") and event[2].startswith("the old settings stay in force; ")


def test_sinks_that_cannot_be_opened_leave_the_old_ones(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(HEAD + camera("top", "[camera.sinks.jsonl]"))

    def change() -> None:
        gpio = '[camera.sinks.gpio]\nchip = "/dev/null"\nline = 1'
        (site / "line.toml").write_text(HEAD + camera("top", f"[camera.sinks.jsonl]\n{gpio}"))
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.15)

    (counts,) = line.run(at(100, "top", change))
    assert counts.judged == 400 and len(records(site, "top")) == 400
    assert told(line)[0][:2] == ("config", "error") and told(line)[0][2].startswith("sinks of top are as they were: ")


def test_sigterm_judges_what_waits_then_ends_well(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(HEAD + camera("top", "[camera.sinks.jsonl]"))
    (counts,) = line.run(at(50, "top", lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert 51 <= counts.judged <= 56 and counts.offered == counts.judged
    assert [r["index"] for r in records(site, "top")] == list(range(counts.judged))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "as it was before"


def test_an_interrupt_drains_too(site: Path, open_line: Callable[[str], Line]) -> None:
    line = open_line(HEAD + camera("top", "[camera.sinks.jsonl]"))
    with pytest.raises(KeyboardInterrupt):
        line.run(at(50, "top", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert 51 <= len(records(site, "top")) <= 56


def test_a_line_that_cannot_be_opened_whole_leaves_nothing_open(site: Path, open_line: Callable[[str], Line]) -> None:
    text = HEAD + f'[sinks.webhook]\nurl = "http://127.0.0.1:{free_port()}/"\n' + camera("top")
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"[metrics]\nport = {server.getsockname()[1]}\n"
        with pytest.raises(UsageError, match="metrics cannot be served at"):
            open_line(text + taken)
        open_line(text)  # the spool is free again


def test_page_and_metrics_are_there_while_it_runs(
    site: Path, open_line: Callable[[str], Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdedge.line.health._STALLED_S", 600.0)
    metrics, page = (f"http://127.0.0.1:{port}" for port in (free_port(), free_port()))
    ports = [url.rpartition(":")[2] for url in (metrics, page)]
    line = open_line(HEAD + f"[metrics]\nport = {ports[0]}\n[page]\nport = {ports[1]}\n" + camera("top"))
    seen: dict[str, bytes] = {}

    def look() -> None:
        for url in (f"{metrics}/metrics", f"{metrics}/healthz", str(line.page_url)):
            with urllib.request.urlopen(url, timeout=30) as answer:
                seen[url] = answer.read()

    line.run(at(200, "top", look))
    assert b'rdedge_frames_judged_total{camera="top"} 201.0' in seen[f"{metrics}/metrics"]
    assert json.loads(seen[f"{metrics}/healthz"])["ok"] is True
    assert b"<html" in seen[f"{page}/"].lower()
