"""USB and other cameras of the Linux kernel, through OpenCV: ``v4l2:///dev/video0?width=1280&height=720&fps=30``."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import cv2

from rdedge.errors import CameraFault, UsageError
from rdedge.sources.capture import CaptureCamera, has_backend
from rdedge.sources.uri import device_of, masked

_NAME_GOES_S = 1.0
OPTIONS = ("width", "height", "fps", "fourcc")


def open_v4l2(uri: str) -> CaptureCamera:
    """``fourcc``: the pixel format asked of the camera, e.g. MJPG for high rates over USB 2.

    Raises UsageError for a wrong address, or a size or format that the camera does not have; CameraFault.
    """
    device, wanted = wanted_of(uri)
    _check_device(Path(device))
    if not has_backend(cv2.CAP_V4L2):
        raise UsageError("this OpenCV has no V4L2", remedy="pip install opencv-python-headless")
    parameters = [number for pair in wanted.items() for number in pair]
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2, parameters)
    if not capture.isOpened():
        raise CameraFault(
            "unplugged", f"{device}: is no camera that can be opened now", remedy="see `v4l2-ctl --list-devices`"
        )
    _check_size(capture, uri, wanted.get(cv2.CAP_PROP_FRAME_WIDTH), wanted.get(cv2.CAP_PROP_FRAME_HEIGHT))
    return CaptureCamera(capture, masked(uri), gone=lambda: _gone(device))


def wanted_of(uri: str) -> tuple[str, dict[int, int]]:
    """The device, and what is asked of it by OpenCV's properties, format first. Raises UsageError."""
    device, options = device_of(uri, known=OPTIONS)
    wanted: dict[int, int] = {}
    fourcc = options.text("fourcc")
    if fourcc is not None:
        if len(fourcc) != 4:
            raise UsageError(
                f"{uri}: fourcc is {fourcc!r}", remedy="give the four letters of `v4l2-ctl --list-formats`"
            )
        wanted[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*fourcc)
    names = (("width", cv2.CAP_PROP_FRAME_WIDTH), ("height", cv2.CAP_PROP_FRAME_HEIGHT), ("fps", cv2.CAP_PROP_FPS))
    for name, key in names:
        if (value := options.count(name)) is not None:
            wanted[key] = value
    return device, wanted


def _check_device(device: Path) -> None:
    """Raises CameraFault for what is not there or not ours to read, UsageError for what can be no camera."""
    try:
        mode = device.stat().st_mode
    except OSError as exc:
        raise CameraFault("unplugged", f"{device}: {exc.strerror}", remedy="check the camera's cable") from exc
    if not stat.S_ISCHR(mode):
        raise UsageError(f"{device}: is no device", remedy="name one of /dev/video*")
    if not os.access(device, os.R_OK | os.W_OK):
        raise CameraFault("credentials", f"{device}: no permission", remedy="sudo usermod -aG video $USER")


def _check_size(capture: cv2.VideoCapture, uri: str, width: int | None, height: int | None) -> None:
    """A camera that lacks a size silently gives another."""
    got_width, got_height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if (width or got_width, height or got_height) != (got_width, got_height):
        capture.release()
        raise UsageError(
            f"{uri}: the camera gives {got_width}x{got_height}",
            remedy="see `v4l2-ctl --list-formats-ext` for its sizes",
        )


def _gone(device: str) -> CameraFault:
    """Of an unplugged camera the frames end a moment before its name goes away."""
    until_s = time.monotonic() + _NAME_GOES_S
    while time.monotonic() < until_s:
        if not Path(device).exists():
            return CameraFault("unplugged", f"{device}: is gone", remedy="check the camera's cable")
        time.sleep(0.02)
    return CameraFault("silent", f"{device}: gives no frames", remedy="check its cable; is another program using it?")
