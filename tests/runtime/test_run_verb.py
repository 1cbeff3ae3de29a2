"""``rdedge run`` end to end: a line a part, files for the rejects, one line for every fault, and a clean end always."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from free_port import free_port
from numpy.typing import NDArray

from rdedge.cli import main

Draw = Callable[..., NDArray[np.uint8]]
Refused = Callable[..., str]
WriteVideo = Callable[..., Path]
LEVELS = [204] * 60 + [51] * 3 + [204] * 37


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs the verb, which must succeed; returns what it printed, with the times as T."""

    def run_verb(bundle: Path, source: object, *options: object) -> list[str]:
        capfd.readouterr()
        assert main(["run", str(bundle), "--source", str(source), *map(str, options)]) == 0
        captured = capfd.readouterr()
        assert captured.err == ""
        return re.sub(r" +\d+\.\d( ms|$)", r" T\1", captured.out, flags=re.MULTILINE).splitlines()

    return run_verb


@pytest.fixture
def many_parts(parts: Path) -> Path:
    """A folder of 5000 pictures: their lines are more than a pipe holds, so an unread run waits."""
    for index in range(5000):
        os.link(parts / "a.png", parts / f"part{index:04d}.png")
    return parts


def start(*arguments: object, **options: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rdedge", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("options", [[], ["--backend", "fake", "--in-flight", "2"]], ids=["", "two in flight"])
def test_a_folder_gives_a_line_a_part_and_a_summary(
    bundle: Path, parts: Path, run: Callable[..., list[str]], options: list[str]
) -> None:
    assert run(bundle, parts, *options) == [
        "  part  name                              verdict      score  largest region x,y wxh        ms",
        "     0  a.png                             good           0.2 T",
        "     1  scratch/b.png                     REJECT         0.8  16,24 8x8 T",
        "     2  z.png                             good           0.2 T",
        "",
        "3 parts: 2 good, 1 rejected; 0 frames dropped, 0 skipped",
        "frame to verdict: median T ms, p95 T ms",
    ]


@pytest.mark.parametrize(("max_age_ms", "judged", "dropped"), [("1e9", 3, 0), ("1e-9", 0, 3)])
def test_frames_that_are_too_old_get_no_verdict(
    bundle: Path, parts: Path, run: Callable[..., list[str]], max_age_ms: str, judged: int, dropped: int
) -> None:
    lines = run(bundle, parts, "--policy", "drop-late", "--max-age-ms", max_age_ms)
    assert any(line.startswith(f"{judged} parts: ") and f"; {dropped} frames dropped" in line for line in lines)


def test_the_columns_are_aligned(bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(bundle), "--source", str(parts)]) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    assert all(re.search(r"\d\.\d$", line) for line in table[1:])


def test_out_gets_verdicts_and_pictures_of_rejects(
    bundle: Path, parts: Path, tmp_path: Path, run: Callable[..., list[str]]
) -> None:
    out = tmp_path / "deep" / "out"
    lines = run(bundle, parts, "--out", out)
    records = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [(r["index"], r["verdict"]) for r in records] == [(0, "good"), (1, "anomalous"), (2, "good")]
    (session,) = {r["session"] for r in records}
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", session)
    assert [p.name for p in (out / "rejects" / session).iterdir()] == ["000001_b.jpg"]
    assert lines[-2:] == [
        f"written to {out / 'verdicts.jsonl'}",
        f"pictures of the rejects in {out / 'rejects' / session}",
    ]


def test_good_parts_alone_leave_no_folder_of_rejects(
    bundle: Path, parts: Path, tmp_path: Path, run: Callable[..., list[str]]
) -> None:
    lines = run(bundle, parts / "a.png", "--out", tmp_path / "out")
    assert lines[-1] == f"written to {tmp_path / 'out' / 'verdicts.jsonl'}"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["verdicts.jsonl"]


def test_one_image_goes_by_its_name(bundle: Path, parts: Path, run: Callable[..., list[str]]) -> None:
    assert run(bundle, parts / "scratch" / "b.png")[1].split()[:3] == ["0", "b.png", "REJECT"]


def test_the_folder_one_stands_in_is_a_source(
    bundle: Path, parts: Path, run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    assert [line.split()[1] for line in run(bundle, ".")[1:4]] == ["a.png", "scratch/b.png", "z.png"]


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mkv", "FFV1")])
def test_a_video_is_judged_frame_by_frame(
    bundle: Path, write_video: WriteVideo, run: Callable[..., list[str]], name: str, codec: str
) -> None:
    lines = run(bundle, write_video(name, codec, LEVELS))
    assert [int(line.split()[0]) for line in lines[1:101] if "REJECT" in line] == [60, 61, 62]
    assert all(line.split()[1] == name for line in lines[1:101])
    assert "100 parts: 97 good, 3 rejected; 0 frames dropped, 0 skipped" in lines


def test_latest_counts_what_it_drops(bundle: Path, write_video: WriteVideo, run: Callable[..., list[str]]) -> None:
    lines = run(bundle, write_video("clip.avi", "MJPG", LEVELS), "--policy", "latest")
    summary = re.match(r"(\d+) parts: .*; (\d+) frames dropped", lines[lines.index("") + 1])
    assert summary is not None and int(summary[1]) + int(summary[2]) == 100
    assert lines[int(summary[1])].split()[0] == "99", "the newest frame is judged"


def test_another_threshold_is_obeyed(bundle: Path, parts: Path, run: Callable[..., list[str]]) -> None:
    assert "3 parts: 3 good, 0 rejected; 0 frames dropped, 0 skipped" in run(bundle, parts, "--threshold", "0.9")
    assert "3 parts: 0 good, 3 rejected; 0 frames dropped, 0 skipped" in run(bundle, parts, "--threshold", "-1")


def test_bad_images_are_skipped_by_name_and_reason_if_asked(
    bundle: Path, parts: Path, run: Callable[..., list[str]]
) -> None:
    (parts / "c.png").write_bytes(b"")
    for index in range(11):
        (parts / f"d{index:02d}.jpg").write_bytes(b"\xff\xd8")
    lines = run(bundle, parts, "--skip-bad")
    assert "3 parts: 2 good, 1 rejected; 0 frames dropped, 12 skipped" in lines
    assert f"skipped {parts / 'c.png'}: is empty (0 bytes)" in lines
    assert sum(line.startswith(f"skipped {parts}") for line in lines) == 10
    assert lines[-1] == "skipped 2 more"


def test_names_too_long_or_strange_keep_the_table_whole(
    bundle: Path, tmp_path: Path, draw_part: Draw, run: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    data = cv2.imencode(".png", draw_part())[1].tobytes()
    for name in ("x" * 40 + "_0001.png", "a\nb.png", os.fsdecode(b"l\xe4nge.png")):
        (folder / name).write_bytes(data)
    names = {line[8:40].rstrip() for line in run(bundle, folder, "--out", tmp_path / "out")[1:4]}
    assert names == {"..." + "x" * 20 + "_0001.png", "a\\nb.png", "l\\udce4nge.png"}


def test_a_region_of_interest_is_judged_and_drawn_in_place(
    write_bundle: Callable[..., Path], tmp_path: Path, draw_part: Draw, run: Callable[..., list[str]]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), draw_part((140, 60), size_hw=(200, 300)))
    lines = run(write_bundle(roi_xywh=(100, 50, 128, 96)), tmp_path / "a.png", "--out", tmp_path / "out")
    assert " 140,60 8x8 " in lines[1]
    (path,) = (tmp_path / "out" / "rejects").rglob("*.jpg")
    assert cv2.imread(str(path)).shape == (200, 300, 3)


def shown(terminal_fd: int) -> bytes:
    """All that was written to a terminal which nobody has open any more; the kernel ends it with an error."""
    data = b""
    with suppress(OSError):
        while chunk := os.read(terminal_fd, 1 << 16):
            data += chunk
    return data


@pytest.mark.parametrize(
    ("environment", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=["terminal", "NO_COLOR", "NO_COLOR empty", "dumb"],
)
def test_colours_are_for_terminals_that_want_them(
    bundle: Path, parts: Path, environment: dict[str, str], colours: bool
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rdedge", "run", str(bundle), "--source", str(parts)]
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(command, stdout=theirs, timeout=60, check=True, env=clean | environment)
    os.close(theirs)
    text = shown(ours).decode()
    os.close(ours)
    assert ("\033[31mREJECT \033[0m  " in text) == colours
    assert ("\033[32mgood   \033[0m  " in text) == colours
    assert ("\033" in text) == colours


@pytest.fixture
def hostile(
    tmp_path: Path, bundle: Path, parts: Path, write_bundle: Callable[..., Path], write_video: WriteVideo
) -> dict[str, list[object]]:
    """Command lines that must fail before the first verdict."""
    (tmp_path / "empty").mkdir()
    flipped = write_bundle("flipped")
    (flipped / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1])
    not_onnx = write_bundle("not_onnx", graph=b"hashed, but no graph")
    small = write_bundle("small", size_hw=(32, 32), graph=(bundle / "model.onnx").read_bytes())
    bad_first = tmp_path / "bad_first"
    bad_first.mkdir()
    (bad_first / "0.png").write_bytes((parts / "a.png").read_bytes()[:100])
    (bad_first / "1.png").write_bytes((parts / "a.png").read_bytes())
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no image\n" * 100)
    broken = write_video("broken.avi", "MJPG", LEVELS)
    os.truncate(broken, 1000)
    (tmp_path / "file").write_bytes(b"mine")
    return {
        "no bundle": [tmp_path / "nowhere", "--source", parts],
        "flipped bundle": [flipped, "--source", parts],
        "no graph": [not_onnx, "--source", parts],
        "graph of another size": [small, "--source", parts],
        "no source": [bundle, "--source", tmp_path / "nowhere"],
        "empty folder": [bundle, "--source", tmp_path / "empty"],
        "folder named .png": [bundle, "--source", tmp_path / "folder.png"],
        "text named .png": [bundle, "--source", tmp_path / "text.png"],
        "text named .png, skipped": [bundle, "--source", tmp_path / "text.png", "--skip-bad"],
        "bad first image": [bundle, "--source", bad_first],
        "unknown kind": [bundle, "--source", bundle / "model.onnx"],
        "broken video": [bundle, "--source", broken],
        "region too large": [write_bundle("roi", roi_xywh=(0, 0, 640, 480)), "--source", parts],
        "threshold": [bundle, "--source", parts, "--threshold", "nan"],
        "precision": [bundle, "--source", parts, "--precision", "int8"],
        "two at once": [bundle, "--source", parts, "--in-flight", "2"],
        "no age": [bundle, "--source", parts, "--policy", "drop-late"],
        "age of nothing": [bundle, "--source", parts, "--max-age-ms", "100"],
        "no time": [bundle, "--source", parts, "--policy", "drop-late", "--max-age-ms", "0"],
        "two of the newest": [bundle, "--source", parts, "--in-flight", "2", "--backend", "fake", "--policy", "latest"],
    }


SAYS = {
    "no bundle": "nowhere: no such bundle folder",
    "flipped bundle": "model.onnx: altered or incomplete",
    "no graph": "model.onnx: ONNX Runtime refuses it",
    "graph of another size": "model.onnx: tensor frame is ",
    "no source": "nowhere: no such file or folder",
    "empty folder": "empty: holds no image files",
    "folder named .png": "folder.png: holds no image files",
    "text named .png": "text.png: damaged, or not an image format that OpenCV reads; "
    "copy it again or leave it out (--skip-bad goes on without it)",
    "text named .png, skipped": "text.png: none of its 1 pictures can be used",
    "bad first image": "0.png: truncated PNG",
    "unknown kind": "model.onnx: unknown kind of source",
    "broken video": "broken.avi: not a video that this OpenCV opens",
    "region too large": "a.png: the picture is 64x48, the region of interest 640x480 at (0, 0) leaves it",
    "threshold": "threshold nan would pass every part or none",
    "two at once": "2 frames in flight on onnxruntime; use 1, or 2 with an engine of TensorRT",
    "no age": "--policy drop-late and --max-age-ms go together; give both or neither",
    "age of nothing": "--policy drop-late and --max-age-ms go together; give both or neither",
    "no time": "a greatest age of 0.0 ms; give the line's cycle time in ms",
    "two of the newest": "--in-flight 2 lets a frame wait behind another, which --policy latest is to avoid",
    "precision": "has no int8 graph (it has: fp32); use one of these, or export with --precision int8",
}


@pytest.mark.parametrize("case", list(SAYS))
def test_what_fails_at_once_is_one_line_and_writes_nothing(
    hostile: dict[str, list[object]], refused: Refused, tmp_path: Path, case: str
) -> None:
    assert SAYS[case] in refused("run", *hostile[case], "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [[], ["--backend", "fake", "--in-flight", "2"]], ids=["", "two in flight"])
def test_what_fails_later_keeps_what_was_judged(
    bundle: Path, parts: Path, tmp_path: Path, refused: Refused, options: list[str]
) -> None:
    (parts / "b.png").write_bytes(b"")
    says = refused("run", bundle, "--source", parts, "--out", tmp_path / "out", *options, prints=True)
    assert "b.png: is empty (0 bytes); copy it again or leave it out (--skip-bad goes on without it)" in says
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mkv", "FFV1")])
def test_a_truncated_video_is_one_line_after_its_verdicts(
    bundle: Path, write_video: WriteVideo, name: str, codec: str
) -> None:
    path = write_video(name, codec, LEVELS)
    os.truncate(path, int(0.6 * path.stat().st_size))
    with start(bundle, "--source", path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(rb"rdedge: error: .*ended after \d+ of 100 frames; it is truncated.*; copy it again\n", err)
    assert len(out.splitlines()) > 10


def test_an_out_that_is_a_file_is_one_line(bundle: Path, parts: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    assert "cannot be written" in refused("run", bundle, "--source", parts, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("out", [".", "out", "../parts/out"])
def test_an_out_within_the_source_is_refused(
    bundle: Path, parts: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """The pictures of rejects would be parts of the next run."""
    monkeypatch.chdir(parts)
    says = refused("run", bundle, "--source", ".", "--out", out)
    assert f"--out {out} lies in the source .: " in says and "name a folder elsewhere" in says
    assert sorted(p.name for p in parts.iterdir()) == ["a.png", "scratch", "z.png"]


def test_a_run_without_stdout_still_writes(bundle: Path, parts: Path, tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m rdedge run "{bundle}" --source "{parts}" --out "{tmp_path}/out" >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 3


def test_an_interrupt_ends_cleanly_with_whole_lines(bundle: Path, many_parts: Path, tmp_path: Path) -> None:
    with start(bundle, "--source", many_parts, "--out", tmp_path / "out") as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"rdedge: interrupted\n")
    lines = (tmp_path / "out" / "verdicts.jsonl").read_bytes().splitlines(keepends=True)
    assert 2 <= len(lines) < 5000
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines))) and lines[-1].endswith(b"\n")


def test_sigterm_judges_what_waits_and_sums_up(bundle: Path, many_parts: Path, tmp_path: Path) -> None:
    with start(bundle, "--source", many_parts, "--out", tmp_path / "out") as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    parts = re.search(rb"\n(\d+) parts: .*; 0 frames dropped, 0 skipped\n", out)
    assert parts is not None and 2 <= int(parts[1]) < 5000
    assert len((tmp_path / "out" / "verdicts.jsonl").read_bytes().splitlines()) == int(parts[1])


def test_the_page_is_at_the_address_that_was_asked_for(
    bundle: Path, parts: Path, run: Callable[..., list[str]], refused: Refused
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        says = refused("run", bundle, "--source", parts, "--page", f"127.0.0.1:{port}")
        assert f"the operator page cannot be opened at 127.0.0.1 port {port}" in says
    assert run(bundle, parts, "--page", f"127.0.0.1:{port}")[0] == f"operator page at http://127.0.0.1:{port}/"
    for address in ("127.0.0.1", "127.0.0.1:0", ":8360", "host:port"):
        assert f"--page {address}; give HOST:PORT" in refused("run", bundle, "--source", parts, "--page", address)


def test_a_closed_pipe_ends_quietly_with_whole_lines(bundle: Path, many_parts: Path, tmp_path: Path) -> None:
    with start(bundle, "--source", many_parts, "--out", tmp_path / "out") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (2, b"")
    lines = (tmp_path / "out" / "verdicts.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    assert 1 <= len(lines) < 5000
