"""Cameras of the kernel. There is none here, so this is what happens without one, or with one that is used otherwise.

What the driver answers is played by a stand-in of OpenCV's capture: v4l2loopback would be a module of the kernel.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from rdedge.errors import CameraFault, UsageError
from rdedge.sources import open_camera


def test_no_camera_is_a_fault_that_says_so() -> None:
    with pytest.raises(
        CameraFault, match="/dev/video99: No such file or directory; check the camera's cable"
    ) as caught:
        open_camera("v4l2:///dev/video99")
    assert caught.value.kind == "unplugged"


def test_a_file_is_no_camera(tmp_path: Path) -> None:
    (tmp_path / "video0").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"video0: is no device; name one of /dev/video\*"):
        open_camera(f"v4l2://{tmp_path / 'video0'}")


def test_another_device_is_no_camera() -> None:
    with pytest.raises(CameraFault, match="/dev/null: is no camera that can be opened now; see `v4l2-ctl"):
        open_camera("v4l2:///dev/null")


def test_a_camera_of_others_is_a_matter_of_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CameraFault, match=r"no permission; sudo usermod -aG video \$USER") as caught:
        open_camera("v4l2:///dev/null")
    assert caught.value.kind == "credentials"


class Driver:
    """A capture with the sizes of a camera that has only one; ``asked`` is what it was opened with."""

    def __init__(self, size_hw: tuple[int, int] = (480, 640), reads: int = 3):
        self.asked: dict[int, int] = {}
        self.released = 0
        self._values = {cv2.CAP_PROP_FRAME_HEIGHT: size_hw[0], cv2.CAP_PROP_FRAME_WIDTH: size_hw[1]}
        self._values |= {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_POS_MSEC: 5000.0}
        self._reads = reads

    def __call__(self, device: str, backend: int, parameters: list[int]) -> Driver:
        assert backend == cv2.CAP_V4L2
        self.asked = dict(zip(parameters[::2], parameters[1::2], strict=True))
        return self

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return float(self._values[key])

    def read(self) -> tuple[bool, np.ndarray | None]:
        self._reads -= 1
        self._values[cv2.CAP_PROP_POS_MSEC] += 1000 / 30 * (3 if self._reads == 0 else 1)
        return (True, np.full((480, 640, 3), self._reads, np.uint8)) if self._reads >= 0 else (False, None)

    def release(self) -> None:
        self.released += 1


def test_what_was_asked_for_reaches_the_driver_and_gaps_in_its_times_are_lost_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    monkeypatch.setattr(cv2, "VideoCapture", driver)
    camera = open_camera("v4l2:///dev/null?width=640&height=480&fps=30&fourcc=MJPG")
    assert driver.asked == {
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
        cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FPS: 30,
    }  # fmt: skip
    frames = [camera.read() for _ in range(3)]
    assert all(frame is not None and frame.device_timestamp_s is not None for frame in frames)
    assert (camera.info.size_hw, camera.info.fps, camera.info.lost) == ((480, 640), 30.0, 2)
    with pytest.raises(CameraFault, match="/dev/null: gives no frames") as caught:
        camera.read()
    assert caught.value.kind == "silent"
    camera.close()
    assert driver.released == 1 and camera.read() is None


def test_of_an_unplugged_camera_the_frames_end_before_its_name_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "video0"
    name.symlink_to("/dev/null")
    monkeypatch.setattr(cv2, "VideoCapture", Driver())
    camera = open_camera(f"v4l2://{name}?width=640&height=480")
    for _ in range(3):
        camera.read()
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: name.unlink())
    monkeypatch.setattr("rdedge.sources.v4l2.time", clock)
    with pytest.raises(CameraFault, match="video0: is gone") as caught:
        camera.read()
    assert caught.value.kind == "unplugged"


def test_a_size_that_the_camera_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cv2, "VideoCapture", driver)
    with pytest.raises(UsageError, match="the camera gives 640x480; see `v4l2-ctl --list-formats-ext`"):
        open_camera("v4l2:///dev/null?width=1920&height=1080")
    assert driver.released == 1
