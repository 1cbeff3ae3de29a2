"""Results reach the disk whole, one at a time, and a disk that takes no more is an error that names the file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
from sink_parts import inspection

from rdedge.errors import SinkError
from rdedge.events import Event
from rdedge.judge import judge
from rdedge.sinks import JsonLinesSink, OverlaySink
from rdedge.sinks.overlay import draw_overlay, heat_colours

Disk = Callable[[int], AbstractContextManager[None]]


def test_nothing_is_made_before_the_first_inspection(tmp_path: Path) -> None:
    for sink in (JsonLinesSink(tmp_path / "a" / "x.jsonl", "s"), OverlaySink(tmp_path / "b", None)):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_line_holds_the_whole_verdict(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "deep" / "x.jsonl", "20261122T081500Z", camera="top")
    sink.write(inspection(part_id="P-7"))
    (line,) = (tmp_path / "deep" / "x.jsonl").read_text().splitlines()  # before close: it is there at once
    record = json.loads(line)
    assert abs(time.monotonic() - record.pop("captured_at_s")) < 60
    assert record.pop("captured_at_utc").endswith("+00:00")
    assert record == {
        "id": "20261122T081500Z/top/3",
        "session": "20261122T081500Z",
        "camera": "top",
        "part_id": "P-7",
        "source": "parts/b.png",
        "index": 3,
        "verdict": "anomalous",
        "score": 0.75,
        "threshold": 0.5,
        "regions": [{"box_xywh": [160, 240, 80, 80], "area_px": 6400, "peak": 0.75}],
        "part": None,
        "preprocess_ms": 1.0,
        "infer_ms": 20.0,
        "judge_ms": 0.5,
    }
    sink.close()
    sink.close()


def test_lines_are_appended_to_those_of_earlier_runs(tmp_path: Path) -> None:
    for session in ("first", "second"):
        sink = JsonLinesSink(tmp_path / "x.jsonl", session)
        sink.write(inspection(is_anomalous=False))
        sink.write(inspection(index=4))
        sink.close()
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(r["session"], r["index"], r["verdict"]) for r in records] == [
        ("first", 3, "good"),
        ("first", 4, "anomalous"),
        ("second", 3, "good"),
        ("second", 4, "anomalous"),
    ]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (b'{"index": 1}\n{"ind', ['{"index": 1}']),
        (b'{"ind', []),
        (b'{"index": 1}\n{"index": 2}', ['{"index": 1}', '{"index": 2}']),
        (b'{"index": 1}\n\xff\xfe', ['{"index": 1}']),
        (b"\0" * 100, []),
    ],
    ids=["half-a-line", "nothing-but", "only-its-end-is-missing", "not-text", "zeros-of-a-power-cut"],
)
def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path, left: bytes, kept: list[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(left)
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s")
    sink.write(inspection())
    sink.close()
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert lines[:-1] == kept and json.loads(lines[-1])["index"] == 3


def test_a_long_file_without_line_ends_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"x" * (2 << 20))
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s")
    sink.write(inspection())
    sink.close()
    first, second = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert first == b"x" * (2 << 20) and json.loads(second)["index"] == 3


@pytest.mark.parametrize("source", [os.fsdecode(b"l\xe4nge.png"), "a\nb.png"])
def test_any_file_name_fits_a_line(tmp_path: Path, source: str) -> None:
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s")
    sink.write(inspection(source=source))
    sink.close()
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] in ("l\\udce4nge.png", "a\\nb.png")


def test_a_full_device_is_an_error() -> None:
    sink = JsonLinesSink(Path("/dev/full"), "s")
    with pytest.raises(SinkError, match=r"/dev/full: cannot be written \(No space left on device\); check the disk"):
        sink.write(inspection())
    sink.close()  # and does not fail again: nothing is waiting to be written


def test_a_disk_that_fills_up_within_a_line_is_an_error_and_leaves_whole_lines(tmp_path: Path, disk_of: Disk) -> None:
    path = tmp_path / "x.jsonl"
    sink = JsonLinesSink(path, "first")
    with disk_of(500):
        sink.write(inspection(index=0))
        with pytest.raises(SinkError, match=r"x.jsonl: cannot be written \(only \d+ of \d+ bytes, the disk is full\)"):
            sink.write(inspection(index=1))
        sink.close()
    sink = JsonLinesSink(path, "second")
    sink.write(inspection(index=3))
    sink.close()
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 3]


def test_a_line_goes_on_over_a_full_disk_and_then_loses_nothing(tmp_path: Path, disk_of: Disk) -> None:
    events: list[Event] = []
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s", camera="top", on_event=events.append)
    with disk_of(1000):
        for index in range(20):
            sink.write(inspection(index))
    assert [(e.kind, e.severity, e.camera) for e in events] == [("disk-fault", "error", "top")]
    assert "the disk is full" in events[0].text
    time.sleep(1.1)  # it is not tried at each line
    sink.write(inspection(20))
    sink.close()
    assert [e.kind for e in events] == ["disk-fault", "disk-recovered"] and sink.lost == 0
    assert [json.loads(line)["index"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == list(range(21))


def test_lines_that_never_reach_the_disk_are_an_error_at_the_end(tmp_path: Path, disk_of: Disk) -> None:
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s", on_event=lambda event: None)
    with disk_of(1000):
        for index in range(5):
            sink.write(inspection(index))
        with pytest.raises(SinkError, match=r"x.jsonl: 3 lines were never written; free space on the disk"):
            sink.close()
    assert sink.lost == 3
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2


def test_a_full_file_is_followed_by_another_and_the_oldest_goes(tmp_path: Path) -> None:
    for first in (0, 50):  # a restart goes on where the last run was
        sink = JsonLinesSink(tmp_path / "x.jsonl", "s", max_bytes=2000, keep_files=3)
        for index in range(first, first + 50):
            sink.write(inspection(index))
        sink.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and all(path.stat().st_size <= 2000 for path in files)
    indices = [json.loads(line)["index"] for path in files for line in path.read_text().splitlines()]
    assert indices == list(range(100 - len(indices), 100)) and len(indices) >= 12
    assert [path.name for path in files[:3]] == [
        f"x.{n:06d}.jsonl" for n in range(int(files[0].name[2:8]), int(files[0].name[2:8]) + 3)
    ]


def test_a_line_longer_than_a_file_still_gets_one(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "x.jsonl", "s", max_bytes=10, keep_files=5)
    for index in range(3):
        sink.write(inspection(index))
    sink.close()
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.iterdir())] == [1, 1, 1]


def test_a_file_system_that_fails_on_closing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    sink = JsonLinesSink(path, "s")
    sink.write(inspection())
    for handle in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{handle}") == str(path):
            os.close(int(handle))
    with pytest.raises(SinkError, match=r"x.jsonl: cannot be written \(Bad file descriptor\)"):
        sink.close()
    sink.close()


@pytest.mark.parametrize("sink_of", [lambda p: JsonLinesSink(p / "x.jsonl", "s"), lambda p: OverlaySink(p / "x", None)])
def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path, sink_of: Callable[[Path], JsonLinesSink]) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    sink = sink_of(tmp_path / "out")
    with pytest.raises(SinkError, match=r"out/.* cannot be written \((File exists|Not a directory)\)"):
        sink.write(inspection())
    sink.close()
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_only_rejects_get_a_picture(tmp_path: Path) -> None:
    sink = OverlaySink(tmp_path / "rejects", None)
    sink.write(inspection(is_anomalous=False))
    assert not (tmp_path / "rejects").exists()
    sink.write(inspection())
    sink.close()
    (path,) = (tmp_path / "rejects").iterdir()
    assert path.name == "000003_b.jpg"
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)


def test_some_good_parts_get_a_picture_of_their_own_folder(tmp_path: Path) -> None:
    sink = OverlaySink(tmp_path, None, good_every=5)
    for index in range(11):
        sink.write(inspection(index, is_anomalous=index == 4))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    assert names == ["000004_b.jpg", "good/000000_b.jpg", "good/000005_b.jpg", "good/000010_b.jpg"]


@pytest.mark.parametrize("stem", ["x" * 250, "検" * 80, os.fsdecode(b"l\xe4nge"), "a\nb"])
def test_any_name_becomes_a_file_name(tmp_path: Path, stem: str) -> None:
    OverlaySink(tmp_path, None).write(inspection(source=f"parts/{stem}.png"))
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("000003_") and path.name.isprintable() and len(path.name.encode()) < 140


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, disk_of: Disk) -> None:
    sink = OverlaySink(tmp_path / "rejects", None)
    with disk_of(1000), pytest.raises(SinkError, match=r"000003_b.jpg: cannot be written \(File too large\)"):
        sink.write(inspection())
    assert list((tmp_path / "rejects").iterdir()) == []


def test_a_picture_too_long_for_a_jpeg_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"a picture of 70000x16 cannot be a JPEG"):
        OverlaySink(tmp_path, None).write(inspection(size_hw=(16, 70_000)))
    assert list(tmp_path.iterdir()) == []


def test_the_overlay_shows_heat_and_box_where_the_region_is() -> None:
    seen = inspection()
    picture = draw_overlay(seen.frame.image_bgr_u8, seen.verdict, None)
    assert (seen.frame.image_bgr_u8 == 128).all(), "the camera's picture is left alone"
    assert (picture[280, 200] != 128).any(), "heat inside"
    blue, green, red = (int(v) for v in picture[240, 200])
    assert red > 200 and blue < 100 and green < 100, "a red frame at its edge"
    assert (picture[400:, 400:] == 128).all(), "nothing elsewhere"
    assert (picture[1:8, 1:8] == 0).all() and (picture[:60, :400] > 200).any(), "a caption on black"


def test_the_overlay_lies_in_the_region_of_interest() -> None:
    anomaly_map = np.full((48, 64), 0.75, np.float32)
    roi = (320, 240, 128, 96)
    verdict = judge(anomaly_map, 0.75, image_threshold=0.5, pixel_threshold=0.3, roi_xywh=roi)
    picture = draw_overlay(np.full((480, 640, 3), 128, np.uint8), verdict, roi)
    changed = np.argwhere((picture[100:] != 128).any(axis=2))  # below the caption
    assert changed.min(axis=0).tolist() == [140, 320]
    assert changed.max(axis=0).tolist() == [235, 447]


def test_the_heat_scale_is_fixed_by_the_threshold() -> None:
    colours, opacity = heat_colours(np.array([[0.0, 1.0, 2.0, 3.0, 9.0]], np.float32), threshold=2.0)
    assert opacity[0].tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    assert (colours[0, 3] == colours[0, 4]).all() and (colours.shape, colours.dtype) == ((1, 5, 3), np.uint8)
    assert heat_colours(np.ones((2, 2), np.float32), threshold=0.0)[1].max() == pytest.approx(0.4)
