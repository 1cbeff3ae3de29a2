"""Network cameras by RTSP: ``rtsp://user:password@host:554/path``, over TCP, through FFmpeg in OpenCV or GStreamer."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import cv2

from rdedge.errors import CameraFault
from rdedge.sources.base import Camera
from rdedge.sources.capture import CaptureCamera, has_backend
from rdedge.sources.gstreamer import GStreamerCamera, quoted
from rdedge.sources.uri import host_and_port, masked

_PORT = 554
_OPEN_TIMEOUT_S, _READ_TIMEOUT_S, _PROBE_TIMEOUT_S = 10.0, 5.0, 3.0


def open_rtsp(uri: str) -> Camera:
    """Everything behind ``rtsp://`` is the camera's own. Raises UsageError, MissingExtraError, CameraFault.

    OpenCV's FFmpeg takes RTSP over TCP unless told otherwise, so a lost packet tears no picture.
    """
    host, named_port = host_and_port(uri)
    port = named_port or _PORT
    if not has_backend(cv2.CAP_FFMPEG):  # as NVIDIA builds it for a Jetson
        return GStreamerCamera(rtsp_pipeline(uri), masked(uri))
    parameters = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(_OPEN_TIMEOUT_S * 1e3),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(_READ_TIMEOUT_S * 1e3),
    ]  # fmt: skip
    capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, parameters)
    if not capture.isOpened():
        raise refusal(uri, host, port)
    camera = CaptureCamera(capture, masked(uri), gone=lambda: _lost(uri, host, port))
    camera.skip_buffered()
    return camera


def rtsp_pipeline(uri: str) -> str:
    """The same stream by GStreamer: ``decodebin`` takes the Jetson's decoder where there is one."""
    return f"rtspsrc location={quoted(uri)} protocols=tcp latency=0 ! decodebin ! videoconvert"


def refusal(uri: str, host: str, port: int) -> CameraFault:
    """Why a stream could not be opened: asked of the camera itself, as FFmpeg does not tell (RFC 2326, 10.2)."""
    shown = masked(uri)
    try:
        status = _describe(uri, host, port)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        return CameraFault("unplugged", f"{shown}: no answer ({reason})", remedy="check its power, cable and address")
    if status in (401, 403):
        return CameraFault(
            "credentials", f"{shown}: user or password refused", remedy="write rtsp://user:password@host, %-encoded"
        )
    if status == 404:
        return CameraFault("misconfigured", f"{shown}: no such stream", remedy="see the camera's manual for its path")
    return CameraFault(
        "unplugged", f"{shown}: answers {status}, but gives no video that can be decoded", remedy="use H.264 or MJPEG"
    )


def _lost(uri: str, host: str, port: int) -> CameraFault:
    """Why a running stream ended: a camera that still takes connections is silent, another one is gone."""
    fault = refusal(uri, host, port)
    if fault.kind == "unplugged" and "no answer" in fault.problem:
        return fault
    return CameraFault("silent", f"{masked(uri)}: gives no more frames", remedy="check the camera")


def _describe(uri: str, host: str, port: int) -> int:
    """The status of a DESCRIBE without credentials; 0 for what is no RTSP. Raises OSError."""
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = f"DESCRIBE {bare} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    with socket.create_connection((host, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(request.encode())
        words = connection.recv(256).split(maxsplit=2)
    is_status = len(words) > 1 and words[0].startswith(b"RTSP/") and words[1].isdigit()
    return int(words[1]) if is_status else 0
