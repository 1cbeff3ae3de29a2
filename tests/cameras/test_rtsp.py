"""Network cameras by RTSP: a real H.264 server, read by FFmpeg and by GStreamer; and clear words when there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from camera_servers import hung, running
from free_port import free_port

from rdedge.errors import CameraFault
from rdedge.sources import WatchLimits, open_camera, open_source
from rdedge.sources.gstreamer import GStreamerCamera
from rdedge.sources.rtsp import open_rtsp, rtsp_pipeline

pytestmark = pytest.mark.usefixtures("_rtsp")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    port = free_port()
    with running("rtsp_server.py", str(port)):
        yield port


@pytest.fixture(scope="module")
def guarded_port() -> Iterator[int]:
    port = free_port()
    with running("rtsp_server.py", str(port), "--user", "op", "--password", "s3cret"):
        yield port


def test_frames_come_live_with_their_own_times(port: int) -> None:
    camera = open_camera(f"rtsp://127.0.0.1:{port}/line")
    opened_s = time.monotonic()
    frames = [camera.read() for _ in range(50)]
    took_s = time.monotonic() - opened_s
    info = camera.info
    camera.close()
    camera.close()
    assert camera.read() is None
    assert (info.size_hw, info.fps, info.is_triggered) == ((240, 320), 25.0, False)
    assert took_s > 1.0, "two seconds of a live stream take two seconds; what was buffered at the start is old"
    times_s = []
    for frame in frames:
        assert frame is not None and frame.image_bgr_u8.shape == (240, 320, 3) and frame.part_id is None
        assert frame.device_timestamp_s is not None and frame.device_timestamp_s <= frame.captured_at_s
        times_s.append(frame.device_timestamp_s)
    assert np.median(np.diff(times_s)) == pytest.approx(0.04, abs=0.002)
    first, last = frames[0], frames[-1]
    assert first is not None and last is not None
    assert tuple(np.round(first.image_bgr_u8[5, 5] / 16)) == (6, 6, 6), "the ground is 0x60 grey"
    assert np.any(first.image_bgr_u8 != last.image_bgr_u8), "the ball moves"


def test_gstreamer_reads_the_same_stream(port: int) -> None:
    """As where OpenCV was built without FFmpeg."""
    uri = f"rtsp://127.0.0.1:{port}/line"
    try:
        camera = GStreamerCamera(rtsp_pipeline(uri), uri)
    except Exception as exc:
        if "gstreamer1.0-libav" in str(exc) or "missing" in str(exc):
            pytest.skip("needs gstreamer1.0-plugins-bad or gstreamer1.0-libav")
        raise
    frame = camera.read()
    camera.close()
    assert frame is not None and frame.image_bgr_u8.shape == (240, 320, 3)
    assert np.abs(frame.image_bgr_u8[5, 5].astype(int) - 0x60).max() < 8


def test_an_opencv_without_ffmpeg_takes_gstreamer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdedge.sources.rtsp.has_backend", lambda _: False)
    opened: list[tuple[str, str]] = []
    monkeypatch.setattr("rdedge.sources.rtsp.GStreamerCamera", lambda *arguments: opened.append(arguments))
    open_rtsp("rtsp://op:s3cret@h/line")
    assert opened == [
        (
            'rtspsrc location="rtsp://op:s3cret@h/line" protocols=tcp latency=0 ! decodebin ! videoconvert',
            "rtsp://op:***@h/line",
        )
    ]


def test_a_password_opens_the_stream_and_is_never_shown(guarded_port: int) -> None:
    source = open_source(f"rtsp://op:s3cret@127.0.0.1:{guarded_port}/line")
    frame = next(iter(source))
    source.close()
    assert frame.source == source.name == f"rtsp://op:***@127.0.0.1:{guarded_port}/line"


@pytest.mark.parametrize("credentials", ["", "op:wr0ng@"], ids=["none", "wrong"])
def test_a_refused_password_is_said(guarded_port: int, credentials: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CameraFault, match="user or password refused; write rtsp://user:password@host") as caught:
        open_rtsp(f"rtsp://{credentials}127.0.0.1:{guarded_port}/line")
    assert caught.value.kind == "credentials"
    assert "wr0ng" not in str(caught.value) + "".join(capfd.readouterr())


def test_a_wrong_path_and_a_camera_that_is_off_are_told_apart(port: int) -> None:
    with pytest.raises(CameraFault, match="no such stream; see the camera's manual") as wrong:
        open_rtsp(f"rtsp://127.0.0.1:{port}/other")
    with pytest.raises(CameraFault, match=r"no answer \(Connection refused\)") as off:
        open_rtsp(f"rtsp://127.0.0.1:{free_port()}/line")
    assert (wrong.value.kind, off.value.kind) == ("misconfigured", "unplugged")


def test_what_is_no_rtsp_is_said() -> None:
    import socketserver

    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"220 mail ready\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with pytest.raises(CameraFault, match="answers 0, but gives no video"):
                open_rtsp(f"rtsp://127.0.0.1:{server.server_address[1]}/line")
        finally:
            server.shutdown()
            thread.join(30)


def test_a_camera_that_hangs_is_silent_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdedge.sources.rtsp._READ_TIMEOUT_S", 8.0)
    limits = WatchLimits(
        retry_s=0.1, retry_cap_s=0.2, silent_s=2.0, settle_frames=3, first_frame_s=60.0, slow_factor=1e9
    )
    port = free_port()
    with running("rtsp_server.py", str(port)) as server:
        seen, kinds = hung(f"rtsp://127.0.0.1:{port}/line", server, limits, more_s=1.0)
    assert seen == sorted(set(seen)) and len(seen) > 20
    assert kinds[0] == "silent" and kinds[-1] == "recovered" and len(kinds) == len(set(kinds)), kinds
