"""What the page knows: counts, the last scores and rejects, alarms; and how little it keeps and takes."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import cv2
import msgspec
import numpy as np
import pytest

from rdedge.events import Event, Severity
from rdedge.inspector import Inspection
from rdedge.line.debounce import PartVerdict
from rdedge.page import OperatorPage
from rdedge.page.board import HISTORY, REJECTS, CameraBoard
from rdedge.page.events import EventBoard
from rdedge.page.pictures import encode_part

MakePart = Callable[..., Inspection]


def board() -> CameraBoard:
    return CameraBoard("top", lambda inspection: f"{inspection.frame.index}".encode())


def test_an_empty_board_claims_nothing() -> None:
    state = board().news(0).state
    assert (state["parts"], state["rejected"], state["scores"], state["rejects"]) == (0, 0, [], [])
    assert state["shown"] is state["age_s"] is state["cycle_s"] is state["threshold"] is None


def test_scores_are_told_once_and_at_most_the_last_thousand(make_part: MakePart) -> None:
    top = board()
    for index in range(HISTORY + 50):
        top.write(make_part(index, score=index / 10000, ms=3.14159))
    first = top.news(0)
    scores = first.state["scores"]
    assert isinstance(scores, list) and len(scores) == HISTORY
    assert scores[0] == (0.005, False, 3.14) and scores[-1][0] == 0.1049
    assert first.state["parts"] == HISTORY + 50
    assert top.news(first.seen["top"]).state["scores"] == []
    top.write(make_part(score=0.75))
    second = top.news(first.seen["top"])
    assert second.state["scores"] == [(0.75, True, 10.0)] and second.key != first.key


def test_the_last_twelve_rejects_are_kept_newest_first(make_part: MakePart) -> None:
    top = board()
    for index in range(40):
        top.write(make_part(index, score=0.75 if index % 2 else 0.25))
        top.encode_rejects()
    rejects = top.news(0).state["rejects"]
    assert isinstance(rejects, list)
    assert [reject["label"] for reject in rejects] == [str(index) for index in range(39, 39 - 2 * REJECTS, -2)]
    assert {reject["picture"] for reject in rejects} == {"ready"}
    assert top.picture(40) == b"39" and top.picture(2) is None, "the second part's turn is over"


def test_a_reject_stays_on_show_for_a_moment(make_part: MakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("rdedge.page.board.time.monotonic", lambda: now_s)
    top = board()

    def shown() -> object:
        state = top.news(0).state["shown"]
        return state["label"] if isinstance(state, dict) else None

    top.write(make_part(0))
    assert shown() == "0"
    top.write(make_part(1))
    assert shown() == "0", "good parts change ten times a second at most"
    now_s += 0.11
    assert shown() == "1"
    top.write(make_part(2, score=0.75))
    assert shown() == "2", "a reject at once"
    for index in range(3, 12):
        now_s += 0.1
        top.write(make_part(index))
        assert shown() == "2"
    top.write(make_part(12, score=0.75))
    assert shown() == "12", "the newer reject"
    now_s += 1.01
    assert shown() == "11" or shown() == "12"
    top.write(make_part(13))
    now_s += 0.11
    assert shown() == "13"


@pytest.mark.parametrize(("cycle_s", "stale_s"), [(0.01, 2.0), (1.0, 4.0), (1000.0, 300.0)])
def test_when_a_verdict_is_old_follows_the_cycle(
    make_part: MakePart, monkeypatch: pytest.MonkeyPatch, cycle_s: float, stale_s: float
) -> None:
    now_s = 100.0
    monkeypatch.setattr("rdedge.page.board.time.monotonic", lambda: now_s)
    top = board()
    top.write(make_part())
    assert top.news(0).state["stale_after_s"] == 10.0
    for _ in range(30):
        now_s += cycle_s
        top.write(make_part())
    now_s += 7.0
    state = top.news(0).state
    assert state["cycle_s"] == pytest.approx(cycle_s) and state["stale_after_s"] == pytest.approx(stale_s)
    assert state["age_s"] == pytest.approx(7.0)


def test_of_a_part_of_several_frames_the_deciding_one_counts(make_part: MakePart) -> None:
    def part(frames: int, anomalous: int, *, is_decided: bool, is_reject: bool) -> PartVerdict:
        return PartVerdict(
            part_id="p1", is_reject=is_reject, anomalous=anomalous, frames=frames, of=3, is_decided=is_decided
        )

    top = board()
    top.write(make_part(0, 0.25, part_id="p1", part=part(1, 0, is_decided=False, is_reject=False)))
    assert top.news(0).state["shown"] is None
    top.write(make_part(1, 0.75, part_id="p1", part=part(2, 1, is_decided=True, is_reject=True)))
    top.write(make_part(2, 0.75, part_id="p1", part=part(3, 2, is_decided=False, is_reject=True)))
    state = top.news(0).state
    assert (state["parts"], state["rejected"], state["is_k_of_n"]) == (1, 1, True)
    assert isinstance(state["shown"], dict) and state["shown"]["label"] == "p1"
    assert state["scores"] == [(0.25, False, 10.0), (0.75, True, 10.0), (0.75, True, 10.0)]


def test_few_camera_frames_are_held_whatever_happens(make_part: MakePart) -> None:
    top = board()
    frames = []
    for index in range(200):
        inspection = make_part(index, score=0.75)
        frames.append(weakref.ref(inspection.frame.image_bgr_u8))
        top.write(inspection)
        if index % 20 == 0:
            top.news(0)
    del inspection
    gc.collect()
    assert sum(ref() is not None for ref in frames) <= 5
    rejects = top.news(0).state["rejects"]
    assert isinstance(rejects, list)
    assert [reject["picture"] for reject in rejects] == ["coming"] * 3 + ["none"] * 9


def test_a_reject_that_was_shown_lets_go_of_its_frame(make_part: MakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("rdedge.page.board.time.monotonic", lambda: now_s)
    top = board()
    reject = make_part(0, score=0.75)
    frame = weakref.ref(reject.frame.image_bgr_u8)
    top.write(reject)
    top.news(0)
    top.encode_rejects()
    del reject
    top.write(make_part(1))
    now_s += 1.5
    top.news(0)
    gc.collect()
    assert frame() is None and top.picture(1) == b"0"


def test_a_write_waits_for_no_picture(make_part: MakePart) -> None:
    release, is_encoding = threading.Event(), threading.Event()

    def slow(_: Inspection) -> bytes:
        is_encoding.set()
        assert release.wait(30)
        return b"picture"

    top = CameraBoard("top", slow)
    top.write(make_part(score=0.75))
    encoder = threading.Thread(target=top.encode_rejects)
    encoder.start()
    assert is_encoding.wait(30)
    for index in range(1000):
        top.write(make_part(index, score=0.75))
    assert top.news(0).state["parts"] == 1001, "all while one picture was being encoded"
    release.set()
    encoder.join(30)
    assert top.picture(1001) == b"picture" and not encoder.is_alive()


def test_the_live_picture_is_that_on_show_and_encoded_once(make_part: MakePart) -> None:
    encoded = []
    top = CameraBoard("top", lambda inspection: encoded.append(inspection.frame.index) or b"picture")
    assert top.live() is None
    top.write(make_part(7))
    assert top.live() == top.live() == (1, b"picture") and encoded == [7]
    top.write(make_part(8, score=0.75))
    assert top.live() == (2, b"picture")
    top.encode_rejects()
    assert top.picture(2) == b"picture" and encoded == [7, 8], "the reject's thumbnail is the same picture"


def test_a_picture_that_fails_is_given_up_and_told(make_part: MakePart, page: OperatorPage) -> None:
    sink = page.sink("top")
    bad = make_part(score=0.75)
    sink._board.encode = lambda inspection: b"" if inspection.frame.index else 1 / 0  # type: ignore[assignment,return-value]
    sink.write(bad)
    sink.write(make_part(1, score=0.75))
    for _ in range(1000):
        state = page.news({}).state
        cameras, events = state["cameras"], state["events"]
        assert isinstance(cameras, list) and isinstance(events, list)
        if [reject["picture"] for reject in cameras[0]["rejects"]] == ["ready", "none"]:
            break
        time.sleep(0.01)
    assert [event["text"] for event in events] == ["the operator page failed: ZeroDivisionError: division by zero"]


def test_a_camera_whose_settings_were_reloaded_keeps_its_counts(make_part: MakePart, page: OperatorPage) -> None:
    page.sink("top").write(make_part(0))
    page.sink("top", roi_xywh=(1, 2, 3, 4)).write(make_part(1))
    cameras = page.news({}).state["cameras"]
    assert isinstance(cameras, list) and [(camera["name"], camera["parts"]) for camera in cameras] == [("top", 2)]
    found = page.picture(0, None)
    assert found is not None and b'"heat_xywh":[1,2,3,4]' in found[1]


def test_a_picture_holds_facts_frame_and_heat_map(make_part: MakePart) -> None:
    inspection = make_part(7, 0.75, size_hw=(1501, 2003), source="parts/\x1b<b>.png")
    data = encode_part(inspection, session="s", camera="top", roi_xywh=(200, 100, 1600, 1200))
    length = int.from_bytes(data[:4], "big")
    facts = msgspec.json.decode(data[4 : 4 + length])
    assert (facts["frame_wh"], facts["heat_xywh"]) == ([2002, 1500], [200, 100, 1600, 1200])
    assert (facts["id"], facts["score"], facts["source"]) == ("s/top/7", 0.75, "parts/\\x1b<b>.png")
    jpeg, png = data[4 + length :][: facts["jpeg_bytes"]], data[4 + length + facts["jpeg_bytes"] :]
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    heat = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert frame is not None and heat is not None
    assert frame.shape == (750, 1001, 3) and abs(int(frame[360, 480, 0]) - 128) <= 2
    assert heat.shape == (48, 64, 4) and heat[28, 20, 3] == 255 and heat[0, 0, 3] == 0


def event(kind: str, severity: Severity = "error", text: str = "x", camera: str = "top") -> Event:
    return Event(kind=kind, severity=severity, text=text, camera=camera)


def recovered(*ends: str) -> Event:
    return Event(kind="recovered", severity="info", text="well again", camera="top", ends=ends)


def alarms(events: EventBoard) -> list[tuple[str, str, bool]]:
    state, _ = events.news()
    listed = state["alarms"]
    assert isinstance(listed, list)
    return [(alarm["camera"], alarm["text"], alarm["stops_verdicts"]) for alarm in listed]


def test_an_alarm_stands_until_what_it_is_about_is_well_again() -> None:
    events = EventBoard()
    events.add(event("silent", text="no frame"))
    events.add(event("unplugged", text="gone"))
    events.add(event("unplugged", text="gone", camera="side"))
    events.add(event("sink-away", "warning", "mqtt://a:1883: is away"))
    events.add(event("sink-away", "warning", "modbus://b:502: is away"))
    events.add(event("disk-fault", text="/out/x.jsonl: full"))
    events.add(event("drift", "warning", "brightness has fallen"))
    assert len(alarms(events)) == 7 and {("top", "gone", True), ("top", "no frame", True)} < set(alarms(events))
    events.add(recovered("unplugged"))
    assert ("top", "no frame", True) in alarms(events) and ("top", "gone", True) not in alarms(events)
    events.add(recovered("unplugged", "silent"))
    events.add(event("sink-back", "info", "mqtt://a:1883: is back"))
    events.add(event("drift-over", "info", "score is back"))
    events.add(event("disk-recovered", "info", "/out/x.jsonl: is written again"))
    assert alarms(events) == [
        ("top", "brightness has fallen", False),
        ("top", "modbus://b:502: is away", False),
        ("side", "gone", True),
    ]


def test_what_happened_once_is_an_alarm_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    events = EventBoard()
    events.add(event("part-lost", text="part 7 gets no verdict"))
    before = events.news()[1]
    events.add(event("silent", text="no frame"))
    assert alarms(events) == [("top", "no frame", True), ("top", "part 7 gets no verdict", False)]
    later_s = time.monotonic() + 61.0
    monkeypatch.setattr("rdedge.page.events.time.monotonic", lambda: later_s)
    assert alarms(events) == [("top", "no frame", True)] and events.news()[1] != before


def test_events_are_bounded() -> None:
    events = EventBoard()
    for index in range(1000):
        events.add(event("silent", text=f"{index}", camera=f"{index}"))
    state, _ = events.news()
    assert [len(state[kind]) for kind in ("events", "alarms")] == [50, 50]  # type: ignore[arg-type]
    assert state["events"][0]["text"] == "999"  # type: ignore[index]
