"""A still scene tells what a camera is worth: each fault of a camera is found by its own check, and by no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_servers import MjpegServer, jpeg, part_image
from numpy.typing import NDArray

from rdedge.cli import main

SIZE_HW = (160, 200)
Refused = Callable[..., str]
Scene = NDArray[np.float64]


def scene() -> Scene:
    image = np.full((*SIZE_HW, 3), 120.0)
    image[30:90, 40:120] = 190.0
    cv2.circle(image, (150, 110), 25, (60.0, 70.0, 80.0), -1)
    return image


def noisy(image: Scene, seed: int, noise: float = 1.5) -> NDArray[np.uint8]:
    grey = np.random.default_rng(seed).normal(0.5, noise, image.shape)
    return np.clip(image + grey, 0, 255).astype(np.uint8)


def blurred(image: Scene) -> Scene:
    return cv2.GaussianBlur(image, (0, 0), 3.0).astype(np.float64)


def moved(image: Scene, index: int) -> Scene:
    image = image.copy()
    image[120:150, 2 * index : 2 * index + 30] = 20.0
    return image


CASES: dict[str, Callable[[int], NDArray[np.uint8]]] = {
    "": lambda i: noisy(scene(), i),
    "temporal noise": lambda i: noisy(scene(), i, 6.0),
    "exposure drift": lambda i: noisy(scene() + i / 5, i),
    "flicker": lambda i: noisy(scene() + 3 * (i % 2), i),
    "blur": lambda i: noisy(blurred(scene()), i),
    "shift": lambda i: noisy(np.roll(scene(), i % 2, axis=1), i),
    "motion": lambda i: noisy(moved(scene(), i), i),
    "saturated": lambda i: noisy(scene() + 136, i),
    "repeated frames": lambda i: noisy(scene(), i // 2),
}


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """A lossless video of what is drawn for each frame."""

    def write(draw: Callable[[int], NDArray[np.uint8]], frames: int = 30) -> Path:
        path = tmp_path / "still.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25.0, SIZE_HW[::-1])
        assert writer.isOpened()
        for index in range(frames):
            writer.write(draw(index))
        writer.release()
        return path

    return write


def report(path: Path | str, capsys: pytest.CaptureFixture[str], *, frames: int = 30) -> tuple[int, dict[str, object]]:
    code = main(["check-camera", str(path), "--frames", str(frames), "--json"])
    told: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, told


def failing(told: dict[str, object]) -> set[str]:
    checks = told["checks"]
    assert isinstance(checks, list)
    return {check["name"] for check in checks if not check["ok"]}


@pytest.mark.parametrize("fault", CASES, ids=[name or "none" for name in CASES])
def test_each_fault_is_found_by_its_own_check(
    film: Callable[..., Path], capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    code, told = report(film(CASES[fault]), capsys)
    also = {"motion", "shift"} if fault in ("motion", "shift") else set()  # what shakes moves, and the reverse
    assert {fault} - {""} <= failing(told) <= {fault} - {""} | also
    assert (code, told["fit"]) == ((1, False) if fault else (0, True))
    assert (told["frames"], told["size_hw"], told["fps"]) == (30, [160, 200], 25.0)


def test_the_measurements_are_right(film: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def draw(index: int) -> NDArray[np.uint8]:
        grey = np.random.default_rng(index).normal(0.0, 1.2, SIZE_HW)
        step = 0.02 * index + 0.4 * (-1) ** index
        return np.repeat(np.rint(np.clip(scene()[..., 0] + grey + step, 0, 255)).astype(np.uint8)[..., None], 3, 2)

    _, told = report(film(draw, 100), capsys, frames=100)
    checks = told["checks"]
    assert isinstance(checks, list)
    value = {check["name"]: check["value"] for check in checks}
    assert value["temporal noise"] == pytest.approx(np.hypot(1.2, 12**-0.5), rel=0.05), "rounding adds its own"
    assert value["exposure drift"] == pytest.approx(0.02 * 99, rel=0.05)
    assert value["flicker"] == pytest.approx(0.4, rel=0.05)
    assert value["blur"] < 0.3 and value["shift"] < 0.1 and value["motion"] == value["repeated frames"] == 0.0


def test_a_scene_without_edges_cannot_be_focused(film: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = film(lambda i: noisy(np.full((*SIZE_HW, 3), 100.0), i))
    code, told = report(path, capsys)
    assert code == 1 and failing(told) == {"blur"}
    assert main(["check-camera", str(path), "--frames", "30"]) == 1
    assert "blur              no edges  at most 0.6" in capsys.readouterr().out


def test_the_table_ends_in_a_verdict(film: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-camera", str(film(CASES["flicker"]))[:], "--frames", "30"]) == 1
    out = capsys.readouterr().out
    assert "30 frames of 200x160, 25 frames/s" in out
    assert "NOT OK -> steady light, e.g. DC" in out and out.endswith("\nnot fit to train on: flicker\n")
    assert main(["check-camera", str(film(CASES[""])), "--frames", "30"]) == 0
    assert capsys.readouterr().out.endswith("\nfit to train on\n")


def test_a_live_camera_is_checked_and_its_damaged_frames_count_as_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdedge.sources.mjpeg._TIMEOUT_S", 60.0)  # a busy machine is no silent camera
    server = MjpegServer()
    server.interval_s = 0.02
    good = [jpeg(noisy(scene(), i), 100) for i in range(40)]
    server.picture = lambda index: good[index % 40]
    _, told = report(server.uri, capsys, frames=40)
    assert failing(told) <= {"lost frames"}, "a busy machine may lose some"
    server.picture = lambda index: good[index % 40][:500] if index % 2 else good[index % 40]
    code, told = report(server.uri, capsys, frames=40)
    server.close()
    assert code == 1 and "lost frames" in failing(told)
    checks = told["checks"]
    assert isinstance(checks, list)
    assert next(check["value"] for check in checks if check["name"] == "lost frames") > 0.4, "every second one"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:9/video"], "no answer"),
        (["trigger+csi://0#from=stdin"], "a trigger gives no still scene; check the camera without trigger+"),
        (["csi://0", "--frames", "5"], "5 frames; look at 20 at least"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["ftp://op:s3cret@h/"], "ftp://op:***@h/: unknown kind of camera"),
    ],
)
def test_what_cannot_be_checked_is_one_line(refused: Refused, arguments: list[str], says: str) -> None:
    told = refused("check-camera", *arguments)
    assert says in told and "s3cret" not in told


def test_a_video_that_is_too_short_or_changes_its_size_is_refused(
    film: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    assert "gave 25 of 100 frames; ask for fewer with --frames" in refused("check-camera", film(CASES[""], 25))
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(30):
        size_hw = (48, 64) if index < 29 else (64, 48)
        cv2.imwrite(str(folder / f"{index:02}.png"), part_image(index, size_hw))
    assert "its frames change their size" in refused("check-camera", folder, "--frames", "30")
