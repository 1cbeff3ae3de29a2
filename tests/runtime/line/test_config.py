"""A line's file: every fault is told at once, by its place; the example file is right; nothing it holds can hang us."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from rdedge.cli import main
from rdedge.line.checked import MAX_BYTES, Problems
from rdedge.line.config import LineConfig, read_config
from rdedge.line.plan import make_plan
from rdedge.signing import new_key, sign_bundle
from rdedge.sources import WatchLimits

EXAMPLE = Path(__file__).parents[3] / "jetson" / "line.example.toml"
MINIMAL = 'out = "out"\nbundle = "bundle"\n[[camera]]\nname = "top"\nuri = "parts"\npolicy = "every"\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "line.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def problems_of(path: Path) -> list[str]:
    with pytest.raises(Problems) as caught:
        read_config(path)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_a_bow_tie_is_an_area(write: Write) -> None:
    (camera,) = read_config(write(MINIMAL + "ignore = [[[0, 0], [9, 9], [9, 0], [0, 9]]]\n")).camera
    assert len(camera.ignore[0]) == 4


def test_a_minimal_file_has_the_defaults(write: Write) -> None:
    config = read_config(write(MINIMAL))
    (camera,) = config.camera
    assert (config.backend, config.precision, config.metrics, config.page) == ("onnxruntime", "fp32", None, None)
    assert (camera.name, camera.policy, camera.threshold, camera.ignore) == ("top", "every", None, ())
    assert config.bundle_of(camera) == "bundle" and config.sinks_of(camera) == config.sinks


def test_a_camera_is_watched_by_its_own_limits(write: Write) -> None:
    text = MINIMAL + "watch = { frozen_s = 0, retry_s = 3, settle_frames = 9 }\n"
    (camera,) = read_config(write(text + '[[camera]]\nname = "b"\nuri = "x"\npolicy = "every"\n')).camera[:1]
    assert camera.watch.limits() == replace(WatchLimits(), frozen_s=0.0, retry_s=3.0, settle_frames=9)
    assert read_config(write(MINIMAL)).camera[0].watch.limits() == WatchLimits()


@pytest.mark.parametrize(
    ("watch", "says"),
    [
        ("retry_s = 31", "watch.retry_s: got 31, expected at most retry_cap_s, 30"),
        ("black_level = 253", "watch.black_level: got 253, expected less than saturated_level"),
        ("settle_frames = 0", "watch.settle_frames: got 0: expected `int` >= 1"),
        ("silent = 3", "watch.silent: unknown key; did you mean silent_s?"),
    ],
)
def test_limits_that_are_none(write: Write, watch: str, says: str) -> None:
    assert problems_of(write(MINIMAL + f"watch = {{ {watch} }}\n")) == [f"camera[0].{says}"]


def test_the_example_shows_the_limits_that_hold_without_it(write: Write) -> None:
    shown = read_config(write(uncommented(EXAMPLE.read_text(encoding="utf-8")))).camera[1].watch
    assert None not in msgspec.structs.astuple(shown) and shown.limits() == WatchLimits()


def test_every_fault_is_told_at_once(write: Write) -> None:
    path = write(
        'out = 5\nbndle = "x"\n[[camera]]\nname = "top/1"\nuri = "x"\npolcy = "every"\npolicy = "latst"\n'
        "ignore = [[[1, 2], [3, 4]]]\nthreshold = nan\nmax_age_ms = -1\n[camera.sinks.mqtt]\nport = 'x'\n"
        "[[camera]]\ntiles = {tile_wh = [1], overlap = 3}\n[metrics]\nbind = 'foo'\n"
    )
    found = problems_of(path)
    expected = [
        "bndle: unknown key; did you mean bundle?",
        "out: got 5: expected `str`, got `int`",
        "camera[0].polcy: unknown key; did you mean policy?",
        "camera[0].name: got 'top/1': expected `str` matching regex",
        "camera[0].policy: got 'latst': invalid enum value 'latst', expected one of every, latest, drop-late",
        "camera[0].ignore[0]: got [[[1, 2], [3, 4]]]: expected `array` of length >= 3",
        "camera[0].threshold: got nan, expected a finite number",
        "camera[0].max_age_ms: got -1: expected `float` > 0.0",
        "camera[0].sinks.mqtt.host: is missing",
        "camera[0].sinks.mqtt.port: got 'x': expected `int`, got `str`",
        "camera[1].name: is missing",
        "camera[1].uri: is missing",
        "camera[1].policy: is missing",
        "camera[1].tiles.overlap: unknown key; did you mean overlap_px?",
        "camera[1].tiles.tile_wh: got [1]: expected `array` of length 2, got 1",
        "camera[1].tiles.overlap_px: is missing",
        "metrics.bind: got 'foo', expected an address",
    ]
    assert len(found) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in found), start


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("max_age_ms = 3", "camera[0].max_age_ms: is for the policy drop-late alone"),
        ("k_of_n = [3, 2]", "camera[0].k_of_n: got [3, 2], expected K not above N"),
        ("ignore = [[[0, 0], [1, 1], [2, 2]]]", "camera[0].ignore[0]: encloses nothing"),
        ("ignore = [[[0, 0], [9, 0], [0, 9]], [[5, 5], [5, 5], [5, 5]]]", "camera[0].ignore[1]: encloses nothing"),
        ("tiles = {tile_wh = [64, 32], overlap_px = 17}", "camera[0].tiles.overlap_px: got 17, expected at most"),
        ('[[camera]]\nname = "top"\nuri = "x"\npolicy = "drop-late"', "camera[1].name: 'top' is also the name of"),
        ('[[camera]]\nname = "b"\nuri = "x"\npolicy = "drop-late"', "camera[1].max_age_ms: is missing"),
        ("[metrics]\nport = 8360\n[page]", "page.port: 8360 is also the port of metrics"),
        ("[metrics]\nport = 70000", "metrics.port: got 70000: expected `int` <= 65535"),
        ('[sinks.webhook]\nurl = "ftp://x"', "sinks.webhook.url: got 'ftp://x': expected `str` matching regex"),
        ("threshold = inf", "camera[0].threshold: got inf, expected a finite number"),
        ("roi_xywh = [0, 0, 0, 5]", "camera[0].roi_xywh[2]: got [0, 0, 0, 5]: expected `int` >= 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(write: Write, more: str, says: str) -> None:
    assert any(problem.startswith(says) for problem in problems_of(write(MINIMAL + more + "\n")))


def test_no_password_is_shown(write: Write) -> None:
    (problem,) = problems_of(write(MINIMAL.replace('uri = "parts"', 'uri = ["rtsp://user:pa@ss@host/1"]')))
    assert problem.startswith("camera[0].uri: got ['rtsp://user:***@host/1']: expected `str`, got `array`")


def test_a_camera_needs_a_bundle_from_somewhere(write: Write) -> None:
    path = write(MINIMAL.replace('bundle = "bundle"\n', ""))
    assert problems_of(path) == ["camera[0].bundle: is missing, and the line has no bundle of its own"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"out = ", "not TOML"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested"),
        (b"#" * (MAX_BYTES + 1), "larger than 1 MiB"),
        (b"out = 2026-13-45", "not TOML"),
        (b"", "out: is missing"),
        (b"camera = []\nout = 'o'", "camera: got []: expected `array` of length >= 1"),
        (b"camera = 5\nout = 'o'", "camera: got 5: expected `array`, got `int`"),
        (b"camera = [5]\nout = 'o'", "camera[0]: got [5]: expected `object`, got `int`"),
    ],
    ids=["cut", "binary", "deep", "large", "date", "empty", "no camera", "camera", "cameras"],
)
def test_what_is_no_line_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "line.toml"
    path.write_bytes(data)
    assert any(says in problem for problem in problems_of(path))


def test_a_pipe_or_nothing_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert problems_of(tmp_path / "pipe") == ["is not a file"]
    assert problems_of(tmp_path / "none") == ["cannot be read (No such file or directory)"]


def test_all_that_the_file_names_is_checked_at_once(write: Write, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "page.token").write_text("\n")
    path = write(
        MINIMAL.replace('"bundle"', '"nowhere"')
        + 'ignore_image = "none.png"\n[[camera]]\nname = "b"\nbundle = "bundle"\nuri = "xyz://1"\npolicy = "every"\n'
        + '[camera.sinks.webhook]\nurl = "http://x/"\nsecret_file = "none"\n[page]\ntoken_file = "page.token"\n'
    )
    with pytest.raises(Problems) as caught:
        make_plan(path)
    found = [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert len(found) == 6
    for place, says in [
        ("bundle: ", "no such bundle folder"),
        ("camera[0]: ", "none.png"),
        ("camera[0].uri: ", "no such file or folder"),
        ("camera[1].uri: ", "unknown kind of camera"),
        ("camera[1].sinks.webhook.secret_file: ", "cannot be read"),
        ("page.token_file: ", "holds no secret of one line"),
    ]:
        assert any(problem.startswith(place) and says in problem for problem in found), (place, found)


def test_a_bundle_of_a_region_takes_no_tiles(write: Write, write_bundle: Callable[..., Path], parts: Path) -> None:
    write_bundle(roi_xywh=(0, 0, 32, 32))
    with pytest.raises(Problems, match=r"camera\[0\].tiles: .*has a region of interest of its own"):
        make_plan(write(MINIMAL + "tiles = {tile_wh = [32, 32], overlap_px = 4}\n"))


def test_the_command_shows_all_problems_and_ends_with_one_line(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write("")
    assert main(["run", "--line", str(path), "--dry-run"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"rdedge: {path}: out: is missing",
        f"rdedge: {path}: camera: is missing",
        f"rdedge: error: {path} has 2 errors; correct it, then start again",
    ]


def test_a_dry_run_says_what_the_line_is(
    write: Write, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(MINIMAL + "k_of_n = [2, 3]\n[sinks.jsonl]\n")
    assert main(["run", "--line", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 1 camera, onnxruntime, fp32, results in {path.parent / 'out'}",
        "  top: policy every; threshold 0.5; sinks jsonl; 2 of 3 frames",
    ]
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["BUNDLE"], ["--source", "x"], [], ["BUNDLE", "--source", "x", "--dry-run"], ["B", "--line", "f"]]
)
def test_half_a_command_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    assert "rdedge: error: " in capsys.readouterr().err


def uncommented(text: str) -> str:
    """With the settings that stand in comments; explaining comments hold no `` = `` of a key."""
    lines = []
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        is_setting = line.startswith("# ") and (bare.startswith("[") or " = " in bare.split("#")[0])
        lines.append(bare if is_setting else line)
    return "\n".join(lines)


def test_the_example_is_right_as_it_is_and_with_all_it_offers(
    write: Write, write_bundle: Callable[..., Path], parts: Path, tmp_path: Path
) -> None:
    bundle = write_bundle(size_hw=(256, 256))
    new_key(tmp_path / "plant")
    sign_bundle(bundle, tmp_path / "plant")
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(make_plan(write(text)).config.camera) == 2
    for name in ("mqtt.password", "webhook.secret", "page.token"):
        (tmp_path / name).write_text("0123456789abcdef\n")
    cv2.imwrite(str(tmp_path / "top-mask.png"), np.zeros((256, 256), np.uint8))
    whole = make_plan(write(uncommented(text))).config
    assert {kind for kind in whole.sinks.__struct_fields__ if getattr(whole.sinks, kind) is not None} == set(
        whole.sinks.__struct_fields__
    )
    assert whole.page is not None and whole.page.token_file == "page.token"
    assert whole.camera[0].ignore_image == "top-mask.png" and whole.camera[1].tiles is not None
    assert whole.require_signature == "plant.pub"
    assert isinstance(whole, LineConfig)
