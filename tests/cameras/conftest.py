"""Cameras that run while a test does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from camera_servers import WAIT_S, MjpegServer, needs

from rdedge.images import silence_opencv


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    silence_opencv()


@pytest.fixture
def mjpeg() -> Iterator[MjpegServer]:
    server = MjpegServer()
    yield server
    server.close()


@pytest.fixture
def _patient_mjpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that is late is waited for: this machine may be busy."""
    monkeypatch.setattr("rdedge.sources.mjpeg._TIMEOUT_S", WAIT_S)


@pytest.fixture(scope="session")
def _aravis() -> None:
    if why := needs("Aravis", "0.8", "gir1.2-aravis-0.8"):
        pytest.skip(why)


@pytest.fixture(scope="session")
def _gstreamer() -> None:
    if why := needs("Gst", "1.0", "gir1.2-gstreamer-1.0"):
        pytest.skip(why)


@pytest.fixture(scope="session")
def _rtsp() -> None:
    if why := needs("GstRtspServer", "1.0", "gir1.2-gst-rtsp-server-1.0"):
        pytest.skip(why)
