"""Any pipeline is a camera; a Jetson's own is run with a test picture in place of its sensor."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from camera_servers import wait_until

from rdedge.errors import CameraFault, MissingExtraError, UsageError
from rdedge.events import Event
from rdedge.sources import WatchLimits, open_source
from rdedge.sources.csi import csi_pipeline
from rdedge.sources.gi_modules import load_gi
from rdedge.sources.gstreamer import GStreamerCamera
from rdedge.sources.watched import WatchedSource

pytestmark = pytest.mark.usefixtures("_gstreamer")


def without_a_jetson(pipeline: str) -> str:
    """The same pipeline with elements of any machine in place of NVIDIA's two, and main memory in place of NVMM."""
    return (
        pipeline.replace("nvarguscamerasrc sensor-id=0", "videotestsrc is-live=true pattern=smpte100")
        .replace("(memory:NVMM)", "")
        .replace("nvvidconv flip-method=2", "videoconvert ! videoflip video-direction=180")
    )


def test_the_csi_pipeline_runs_with_a_substitute_for_the_sensor() -> None:
    pipeline = without_a_jetson(csi_pipeline("csi://0?width=642&height=360&fps=50&flip=2"))
    camera = GStreamerCamera(pipeline, "csi://0")
    frames = [camera.read() for _ in range(6)]
    info = camera.info
    camera.close()
    camera.close()
    assert (info.size_hw, info.fps) == ((360, 642), 50.0)
    for index, frame in enumerate(frames):
        assert frame is not None and frame.index == index and frame.image_bgr_u8.shape == (360, 642, 3)
        assert frame.device_timestamp_s is not None
        assert 0.0 <= frame.captured_at_s - frame.device_timestamp_s < 5.0, "one clock: that of time.monotonic"
    assert camera.read() is None, "closed"
    bars = frames[0].image_bgr_u8 if frames[0] is not None else np.zeros(0)
    # The bars run white, yellow, cyan ... blue; turned by 180 degrees they start with blue.
    assert tuple(bars[330, 20] > 100) == (True, False, False), "blue at the left, in BGR"
    assert tuple(bars[330, 500] > 100) == (False, True, True), "yellow at the right"


@pytest.mark.parametrize(("ahead_s", "is_one"), [(0.0, True), (-1000.0, False), (1000.0, False)])
def test_a_busy_machine_has_the_same_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float, is_one: bool) -> None:
    """Time passes between the readings of two clocks; how much of it there is does not make them two."""

    def monotonic() -> float:
        time.sleep(0.03)
        now_s = time.monotonic()
        time.sleep(0.03)
        return now_s + ahead_s

    monkeypatch.setattr("rdedge.sources.gstreamer.time", SimpleNamespace(monotonic=monotonic))
    camera = GStreamerCamera("videotestsrc is-live=true ! videoconvert", "x")
    frame = camera.read()
    camera.close()
    assert frame is not None and (frame.device_timestamp_s is not None) == is_one


def test_the_csi_pipeline_runs_as_it_is_written() -> None:
    """With elements by NVIDIA's names that take its properties and insist on its memory and formats."""
    uri = "csi://1?width=640&height=480&fps=30&exposure_us=2000&flip=2"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "jetson_elements.py"), uri],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    quarters = np.array(shown.pop("quarters_bgr"))
    assert shown == {
        "size_hw": [480, 640], "fps": 30.0, "sensor_id": 1, "exposure": "2000000 2000000", "flip": 2,
    }  # fmt: skip
    turned = np.array([(128, 128, 128), (0, 0, 255), (0, 255, 0), (255, 0, 0)])
    assert np.abs(quarters - turned).max() <= 3, "the camera's blue, green, red and grey, by 180 degrees"


def test_without_a_jetson_the_csi_camera_says_what_is_missing() -> None:
    with pytest.raises(MissingExtraError, match=r'no element "nvarguscamerasrc"; .* come with a Jetson'):
        list(open_source("csi://0"))


@pytest.mark.parametrize("width", [16, 17, 18, 19])
def test_rows_are_unpadded(width: int) -> None:
    colour = "0xff3c78c8"  # ARGB
    source = f"videotestsrc pattern=solid-color foreground-color={colour} ! video/x-raw,width={width},height=16"
    camera = GStreamerCamera(f"{source} ! videoconvert", "x")
    frame = camera.read()
    camera.close()
    assert frame is not None and frame.image_bgr_u8.shape == (16, width, 3)
    assert np.all(np.abs(frame.image_bgr_u8.astype(int) - (0xC8, 0x78, 0x3C)) <= 2)
    assert frame.image_bgr_u8.flags.writeable and frame.image_bgr_u8.flags.c_contiguous


def test_a_pipeline_that_is_none_is_a_wrong_address() -> None:
    with pytest.raises(UsageError, match=r"csi://0: .*syntax error"):
        GStreamerCamera("videotestsrc ! ! videoconvert", "csi://0")


def test_a_stream_that_ends_is_a_fault_and_the_last_frames_come_first() -> None:
    camera = GStreamerCamera("videotestsrc num-buffers=3 ! videoconvert", "x")
    assert [frame is not None for frame in (camera.read(), camera.read(), camera.read())] == [True] * 3
    with pytest.raises(CameraFault, match="x: the stream ended") as caught:
        camera.read()
    camera.close()
    assert caught.value.kind == "unplugged"


def test_an_element_that_fails_tells_why() -> None:
    with pytest.raises(CameraFault, match=r"x: .*Resource not found") as caught:
        GStreamerCamera("filesrc location=/nowhere ! decodebin ! videoconvert", "x").read()
    assert caught.value.kind == "unplugged"


def test_lost_frames_show_in_the_timestamps() -> None:
    """Colour bars that move by one pixel a frame, so that two pictures say how many frames lie between them."""
    pipeline = (
        "videotestsrc num-buffers=200 is-live=true pattern=smpte horizontal-speed=1 animation-mode=frames"
        " ! video/x-raw,format=GRAY8,width=640,height=16,framerate=100/1 ! identity drop-probability=0.5 ! videoconvert"
    )
    camera = GStreamerCamera(pipeline, "x")
    rows = []
    with pytest.raises(CameraFault, match="ended"):
        while frame := camera.read():
            rows.append(frame.image_bgr_u8[8, :, 0])
    lost = camera.info.lost
    camera.close()
    steps = [
        next(step for step in range(1, 201) if np.array_equal(np.roll(row, -step), later))
        for row, later in itertools.pairwise(rows)
    ]
    assert lost == sum(step - 1 for step in steps) > 0 and len(rows) + lost <= 200


def test_closing_ends_a_source_that_is_watched() -> None:
    events: list[Event] = []
    source = WatchedSource(
        "x", lambda: GStreamerCamera("videotestsrc is-live=true pattern=snow ! videoconvert", "x"),
        on_event=events.append, limits=WatchLimits(slow_factor=1e9, silent_s=60.0),
    )  # fmt: skip
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.extend(frame.index for frame in source))
    thread.start()
    wait_until(lambda: len(seen) > 5)
    started_s = time.monotonic()
    source.close()
    thread.join(30)
    assert not thread.is_alive() and time.monotonic() - started_s < 10.0 and events == []


def test_what_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(MissingExtraError, match=r"needs Aravis 99\.0; apt install gir1\.2-aravis-0\.8"):
        load_gi("Aravis", "99.0")


def test_without_pygobject_the_remedy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gi", None)
    with pytest.raises(
        MissingExtraError, match=r"needs PyGObject .*; apt install .* && pip install 'rdedge\[gobject\]'"
    ):
        list(open_source("gige://127.0.0.1"))
