"""`rdedge bench` on the line's own path: each frame is accounted for, and every number has its stage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rdedge.bench.record import STAGES, WHOLE, Record, read_record
from rdedge.cli import main
from rdedge.inspector import Inspector
from rdedge.sinks import JsonLinesSink
from rdedge.text import EN_DASH

Refused = Callable[..., str]
BEFORE_THE_SINKS = ("queue", "preprocess", "engine", "judge")


def bench(bundle: Path, out: Path, *options: object) -> Record:
    path = out / "measurement.json"
    command = ["bench", str(bundle), "--cold-starts", "0", "--json", str(path), *map(str, options)]
    assert main(command) == 0
    return read_record(path)


def test_every_frame_has_every_stage_and_the_stages_add_up(bundle: Path, tmp_path: Path) -> None:
    record = bench(bundle, tmp_path, "--frames", 30, "--warm-up", 4)
    (phase,) = record.phases
    assert (phase.offered, phase.judged, phase.dropped, phase.rejected) == (34, 34, 0, 0)
    assert list(phase.times_ms) == [stage for stage in STAGES if stage != "device"]
    assert {len(times) for times in phase.times_ms.values()} == {30} == {len(phase.at_s)}
    assert {len(times) for times in phase.warm_up_ms.values()} == {4}
    for i, whole_ms in enumerate(phase.times_ms[WHOLE]):
        assert sum(phase.times_ms[stage][i] for stage in BEFORE_THE_SINKS) == pytest.approx(whole_ms, abs=1e-3)
    assert phase.at_s[0] == 0.0 and phase.at_s == sorted(phase.at_s) and phase.seconds >= phase.at_s[-1]
    assert record.device_parts_ms == {} and record.cold_start_ms == [] and phase.board is None
    assert record.memory.bench_peak_mb > 10 and record.memory.device_mb is None


def test_one_at_a_time_the_next_frame_comes_after_the_verdict(bundle: Path, tmp_path: Path) -> None:
    (phase,) = bench(bundle, tmp_path, "--frames", 50, "--warm-up", 0).phases
    verdicts_s = [at + whole / 1e3 for at, whole in zip(phase.at_s, phase.times_ms[WHOLE], strict=True)]
    assert all(nxt >= verdict - 1e-5 for verdict, nxt in zip(verdicts_s, phase.at_s[1:], strict=False))
    assert phase.name == "steady, one at a time"


def test_a_full_queue_makes_frames_wait_and_is_told(bundle: Path, tmp_path: Path) -> None:
    record = bench(bundle, tmp_path, "--frames", 50, "--warm-up", 0, "--pace", "max")
    (phase,) = record.phases
    verdicts_s = [at + whole / 1e3 for at, whole in zip(phase.at_s, phase.times_ms[WHOLE], strict=True)]
    assert any(nxt < verdict for verdict, nxt in zip(verdicts_s, phase.at_s[1:], strict=False))
    assert any("waiting behind other frames" in note for note in record.notes)
    assert phase.dropped == 0 and phase.judged == 50


def test_frames_by_the_clock_are_dropped_where_the_line_is_slower(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonLinesSink.write

    def slow(sink: JsonLinesSink, inspection: object) -> None:
        write(sink, inspection)  # type: ignore[arg-type]
        time.sleep(0.02)

    monkeypatch.setattr(JsonLinesSink, "write", slow)
    (phase,) = bench(bundle, tmp_path, "--frames", 60, "--warm-up", 0, "--pace", 1000).phases
    assert phase.dropped > 0 and phase.offered == 60 == phase.judged + phase.dropped
    assert min(phase.times_ms["sinks"]) >= 20.0 and min(phase.times_ms["judge"]) < 20.0
    assert phase.name == "steady, 1000 frames/s, newest wins"


def test_a_source_is_judged_again_and_again(bundle: Path, parts: Path, tmp_path: Path) -> None:
    record = bench(bundle, tmp_path, "--source", parts, "--frames", 8, "--warm-up", 1)
    (phase,) = record.phases
    assert (phase.judged, phase.rejected) == (9, 3), "every third of the folder's parts is bad"
    assert record.subject["frames"] == str(parts)


def test_a_video_is_a_source(bundle: Path, tmp_path: Path, write_video: Callable[..., Path]) -> None:
    video = write_video("parts.avi", "MJPG", [204, 51])
    (phase,) = bench(bundle, tmp_path, "--source", video, "--frames", 6, "--warm-up", 0).phases
    assert (phase.judged, phase.rejected) == (6, 3)


def test_gaps_and_an_engine_kept_warm(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inferred = 0
    opened = Inspector.open

    def counting(*args: object, **kwargs: object) -> Inspector:
        inspector = opened(*args, **kwargs)  # type: ignore[arg-type]
        infer = inspector.backend.infer

        def count(frame_u8: np.ndarray) -> object:
            nonlocal inferred
            inferred += 1
            return infer(frame_u8)

        monkeypatch.setattr(inspector.backend, "infer", count)
        return inspector

    monkeypatch.setattr(Inspector, "open", counting)
    record = bench(bundle, tmp_path, "--frames", 5, "--warm-up", 0, "--idle-gap", 0.05)
    assert [phase.name for phase in record.phases] == ["steady, one at a time", "a part every 0.05 s"]
    assert inferred == 25 and record.phases[1].judged == 20
    assert min(np.diff(record.phases[1].at_s)) >= 0.05
    kept = bench(bundle, tmp_path, "--frames", 5, "--warm-up", 0, "--idle-gap", 0.3, "--keep-warm")
    assert [phase.name for phase in kept.phases][2:] == ["a part every 0.3 s, kept warm"]
    assert inferred > 25 + 45 + 20, "the engine ran between the parts"
    assert any("kept warm: median" in note for note in kept.notes)


def test_a_cold_start_is_a_fresh_run(bundle: Path, tmp_path: Path) -> None:
    record = bench(bundle, tmp_path, "--frames", 2, "--warm-up", 0, "--cold-starts", 2)
    assert len(record.cold_start_ms) == 2 and min(record.cold_start_ms) > 50, "Python alone takes as long"
    assert record.memory.run_peak_mb is not None and 20 < record.memory.run_peak_mb < 1000


def test_a_run_that_fails_is_told(bundle: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended with 1 (it said nothing); run it by hand" in refused("bench", bundle, "--frames", 2)


def test_what_is_printed_names_machine_versions_and_blanks(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(bundle, tmp_path, "--frames", 30, "--warm-up", 2)
    out = capsys.readouterr().out
    assert "held-out good parts of the bundle, enlarged to 1920x1080" in out
    assert "30 frames; blank where fewer than one frame would lie beyond it: p99 100, p99.9 1,000 frames" in out
    assert "processor" in out and "onnxruntime " in out and "jitter: mean absolute difference" in out
    row = next(line for line in out.splitlines() if line.startswith(WHOLE))
    assert row.split()[-4:-2] == [EN_DASH, EN_DASH] and len(row.split()) == 3 + 7


def test_a_region_of_interest_lies_in_its_own_pictures(
    write_bundle: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    bundle = write_bundle("with-roi", roi_xywh=(1900, 40, 200, 150))
    record = bench(bundle, tmp_path, "--frames", 3, "--warm-up", 0)
    assert record.subject["frames"].endswith("enlarged to 2100x1080") and record.phases[0].rejected == 0


def test_the_page_holds_everything(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    bench(bundle, tmp_path, "--frames", 40, "--warm-up", 2, "--html", page)
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    for stage in (stage for stage in STAGES if stage != "device"):
        assert text.count(f'aria-label="Histogram of {stage}"') == text.count(f'aria-label="{stage} over time"') == 1
        drawing = text.partition(f'aria-label="Histogram of {stage}"')[2].partition("</svg>")[0]
        counts = [int(piece.partition('"')[0]) for piece in drawing.split('data-count="')[1:]]
        assert sum(counts) == 40, stage
    assert "rdedge bench" in text or "command" in text
    assert "onnxruntime" in text
    assert '<th scope="col">stage, ms</th>' in text and "Side by side" not in text


def test_phases_stand_side_by_side_on_the_page(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    record = bench(bundle, tmp_path, "--frames", 4, "--warm-up", 0, "--idle-gap", 0.01, "--html", page)
    table = page.read_text().partition("<h2>Side by side</h2>")[2].partition("</table>")[0]
    for phase in record.phases:
        median = float(np.median(phase.times_ms[WHOLE]))
        assert f"<td>{phase.name}</td><td>{median:.2f}</td>" in table


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--frames", "0"], "measure at least 1 frame"),
        (["--pace", "fast"], "--pace fast; give one, max, or frames a second"),
        (["--pace", "0"], "--pace 0;"),
        (["--pace", "nan"], "--pace nan;"),
        (["--idle-gap", "-1"], "--idle-gap -1.0; give seconds"),
        (["--keep-warm"], "--keep-warm without gaps"),
        (["--source", "rtsp://127.0.0.1/x", "--pace", "max"], "a camera has its own pace"),
        (["--source", "/nowhere"], "/nowhere: no such file or folder"),
        (["--json", "/nowhere/x.json"], "/nowhere: no such folder"),
        (["--html", "/tmp"], "/tmp: is a folder; name the file"),
        (["--anyway"], "--anyway without --compare"),
        (["--precision", "fp16"], "has no fp16 graph"),
        (["--compare", "a.json", "b.json"], "--compare with a bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_one_line(bundle: Path, refused: Refused, options: list[str], says: str) -> None:
    assert says in refused("bench", bundle, "--cold-starts", 0, *options)


def test_a_camera_that_is_not_there_ends_it(
    bundle: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A line would wait for it, and so would this test: hence in a process that may be given up."""
    code = "import sys; from rdedge.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, "bench", bundle, "--cold-starts", 0, "--source", "v4l2:///dev/video99")
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "/dev/video99: No such file" in done.stderr and "ends at a camera's first fault" in done.stderr


def test_a_bundle_is_needed(refused: Refused) -> None:
    assert "the following arguments are required: BUNDLE; see `rdedge bench --help`" in refused("bench")


def test_a_picture_that_cannot_be_used_ends_the_run(bundle: Path, parts: Path, refused: Refused) -> None:
    (parts / "b.png").write_bytes(b"no picture")
    assert "b.png" in refused("bench", bundle, "--source", parts, "--cold-starts", 0, "--frames", 4)


def test_verdicts_go_through_the_sinks_of_a_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_part: Callable[..., np.ndarray]
) -> None:
    """The lines written are those of `rdedge run`, and the picture of the reject is made."""
    folder = tmp_path / "one"
    folder.mkdir()
    cv2.imwrite(str(folder / "bad.png"), draw_part((16, 24)))
    written: list[str] = []
    close = JsonLinesSink.close

    def keep(sink: JsonLinesSink) -> None:
        written.append(sink._path.read_text())
        written.extend(path.name for path in sink._path.parent.rglob("*.jpg"))
        close(sink)

    monkeypatch.setattr(JsonLinesSink, "close", keep)
    bench(bundle, tmp_path, "--source", folder, "--frames", 3, "--warm-up", 0)
    lines = [json.loads(line) for line in written[0].splitlines()]
    assert [line["verdict"] for line in lines] == ["anomalous"] * 3
    assert len(written) == 4, "a picture of each reject"
