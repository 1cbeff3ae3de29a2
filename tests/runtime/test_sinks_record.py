"""What a verdict and an alarm look like everywhere: ids that tell duplicates, text that any reader takes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import datetime, timezone

import msgspec
from sink_parts import inspection

from rdedge.events import Event
from rdedge.line.debounce import PartVerdict
from rdedge.sinks.record import event_record, inspection_record, new_session


def test_sessions_differ_even_within_a_second() -> None:
    sessions = {new_session() for _ in range(200)}
    assert len(sessions) == 200
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", session) for session in sessions)


def test_the_id_tells_session_camera_and_part() -> None:
    ids = {
        inspection_record(inspection(index), session=session, camera=camera)["id"]
        for index in (0, 1)
        for session in ("s", "t")
        for camera in ("top", "side")
    }
    assert len(ids) == 8 and "s/top/1" in ids


def test_the_time_of_capture_is_told_in_utc() -> None:
    seen = inspection()
    seen = replace(seen, frame=replace(seen.frame, captured_at_s=time.monotonic() - 3600))
    captured = datetime.fromisoformat(str(inspection_record(seen, session="s", camera="c")["captured_at_utc"]))
    assert abs((datetime.now(timezone.utc) - captured).total_seconds() - 3600) < 60


def test_a_part_of_several_frames_says_how_it_stands() -> None:
    part = PartVerdict(part_id="P", is_reject=True, anomalous=2, frames=3, of=5, is_decided=True)
    record = inspection_record(replace(inspection(), part=part), session="s", camera="c")
    assert json.loads(msgspec.json.encode(record))["part"] == {
        "part_id": "P",
        "is_reject": True,
        "anomalous": 2,
        "frames": 3,
        "of": 5,
        "is_decided": True,
    }


def test_names_from_outside_stay_one_line() -> None:
    record = inspection_record(inspection(part_id="a\nb\udcff"), session="s", camera="c")
    assert record["part_id"] == "a\\nb\\udcff"
    assert b"\n" not in msgspec.json.encode(record)


def test_an_alarm_is_told_whole_and_has_its_own_id() -> None:
    event = Event(kind="silent", severity="error", text="no frame\nfor 5 s", camera="top")
    first, second = event_record(event, session="s"), event_record(event, session="s")
    assert first.pop("id") != second.pop("id")
    assert (
        first
        == second
        == {
            "session": "s",
            "camera": "top",
            "kind": "silent",
            "severity": "error",
            "text": "no frame\\nfor 5 s",
            "ends": [],
            "at_s": event.at_s,
            "at_utc": event.at_utc.isoformat(timespec="milliseconds"),
        }
    )
