"""Industrial cameras through Aravis, with its own GigE Vision camera on loopback in a process that can be killed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import cv2
import numpy as np
import pytest
from camera_servers import WAIT_S, Server, hung, running, wait_until

from rdedge.errors import CameraFault, ImageError, UsageError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.sources import SourceInfo, WatchLimits, open_source
from rdedge.sources.aravis import AravisCamera
from rdedge.sources.watched import WatchedSource

pytestmark = pytest.mark.usefixtures("_aravis")
ADDRESS = "127.0.0.1"
QUICK = WatchLimits(retry_s=0.1, retry_cap_s=0.3, silent_s=1.0, settle_frames=3, first_frame_s=60.0, slow_factor=1e9)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is late is waited for: this machine may be busy."""
    monkeypatch.setattr("rdedge.sources.aravis._FREE_RUNNING_TIMEOUT_S", WAIT_S)


@pytest.fixture(scope="module")
def camera() -> Iterator[Server]:
    with running("gige_server.py", ADDRESS) as server:
        yield server


def eight_in_a_row(uri: str) -> tuple[list[Frame | None], SourceInfo]:
    """The first frames of a connection, the first of three on which this machine was in time for all their packets."""
    for _ in range(3):
        frames: list[Frame | None] = []
        device = AravisCamera(uri)
        with suppress(ImageError):
            frames += [device.read() for _ in range(8)]
        info = device.info
        device.close()
        device.close()
        assert device.read() is None
        if len(frames) == 8 and info.lost == 0:
            break
    assert len(frames) == 8
    return frames, info


@pytest.mark.parametrize(
    ("pixel_format", "is_grey"),
    [
        ("Mono8", True),
        ("RGB8", False),
        ("BayerRG8", False),
        ("BayerBG8", False),
        ("BayerGB8", False),
        ("BayerGR8", False),
    ],
)
def test_frames_come_in_every_format_with_their_own_times(camera: Server, pixel_format: str, is_grey: bool) -> None:
    uri = f"gige://{ADDRESS}?width=256&height=128&fps=50&exposure_us=2000&gain=1&pixel_format={pixel_format}"
    frames, info = eight_in_a_row(uri)
    assert (info.size_hw, info.fps, info.lost, info.is_triggered) == ((128, 256), 50.0, 0, False)
    times_s = []
    for index, frame in enumerate(frames):
        assert frame is not None and frame.index == index and frame.image_bgr_u8.shape == (128, 256, 3)
        assert frame.part_id is None and frame.device_timestamp_s is not None
        assert frame.device_timestamp_s <= frame.captured_at_s
        times_s.append(frame.device_timestamp_s)
        blue, green, red = (frame.image_bgr_u8[..., channel].astype(int) for channel in range(3))
        assert (np.array_equal(blue, green) and np.array_equal(green, red)) == is_grey
    assert np.median(np.diff(times_s)) == pytest.approx(0.02, rel=0.5)


def test_a_bayer_pattern_is_read_the_right_way_round() -> None:
    """Mosaics of one flat colour, laid out as GenICam's names say, become that colour."""
    from rdedge.sources.aravis import _TO_BGR

    colour = {"R": 200, "G": 120, "B": 40}
    for name, code in _TO_BGR.items():
        if name.startswith("Bayer"):
            first = name[5:7]  # of the first row; the second row holds the other green
            rows = {"RG": "RGGB", "BG": "BGGR", "GB": "GBRG", "GR": "GRBG"}[first]
            tile = np.array([colour[c] for c in rows], np.uint8).reshape(2, 2)
            assert code is not None
            image = cv2.cvtColor(np.tile(tile, (8, 8)), code)
            assert tuple(image[8, 8]) == (40, 120, 200), name


def test_a_software_trigger_gives_one_frame_for_each_part(camera: Server) -> None:
    source = open_source(
        f"trigger+gige://{ADDRESS}?width=64&height=64&trigger=software#from=udp:127.0.0.1:0&max_lag_ms=60000"
    )
    port = source._open_camera.__closure__  # type: ignore[attr-defined]
    triggers = next(cell.cell_contents for cell in port if hasattr(cell.cell_contents, "port"))
    frames: list[str | None] = []
    thread = threading.Thread(target=lambda: frames.extend(frame.part_id for frame in source))
    thread.start()
    wait_until(lambda: source.info.is_triggered, "open")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for part in ("A-17", "A-18", "", "größe 1"):
            count = len(frames)
            line.sendto(part.encode(), ("127.0.0.1", triggers.port))
            wait_until(lambda count=count: len(frames) > count, part)
    assert source.info.faults == ()
    source.close()
    thread.join(30)
    assert frames == ["A-17", "A-18", "3", "größe 1"]


def test_a_hardware_trigger_is_waited_for(camera: Server) -> None:
    """No signal comes on this line here: the camera waits, and that is no fault."""
    events: list[Event] = []
    limits = WatchLimits(first_frame_s=1.0, silent_s=1.0)
    device = AravisCamera(f"gige://{ADDRESS}?trigger=Line0")  # before that time begins
    source = WatchedSource("x", lambda: device, on_event=events.append, limits=limits)
    timer = threading.Timer(3.0, source.close)
    timer.start()
    frames = list(source)
    timer.join()
    assert frames == [] and events == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("exposure_us=1", "exposure_us is 1; the camera takes 10 to 1e\\+07"),
        ("gain=11", "gain is 11; the camera takes 0 to 10"),
        ("fps=5000", "fps is 5000; the camera takes"),
        ("pixel_format=Mono16", "pixel format Mono16; use one of: Mono8, RGB8, Bayer"),
        ("packet_size=9000", "no option packet_size; it knows width, height"),
    ],
)
def test_what_the_camera_does_not_take_is_said_with_its_bounds(camera: Server, options: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        AravisCamera(f"gige://{ADDRESS}?{options}")


def test_closing_gives_the_camera_up_for_the_next_program(camera: Server) -> None:
    """Else it would be refused for the seconds of a heartbeat."""
    first = AravisCamera(f"gige://{ADDRESS}")
    device = first._camera.get_device()
    assert device.is_controller()
    first.close()
    assert not device.is_controller()
    frames, _ = eight_in_a_row(f"gige://{ADDRESS}")
    assert None not in frames


def test_no_camera_is_a_fault_that_says_so() -> None:
    with pytest.raises(
        CameraFault, match=r"gige://127\.0\.0\.9: cannot be opened .*; check its power, cable"
    ) as caught:
        AravisCamera("gige://127.0.0.9")
    assert caught.value.kind == "unplugged"


def test_a_camera_that_hangs_is_silent_and_comes_back(camera: Server) -> None:
    """Stopped as by SIGSTOP: it neither sends nor answers, for longer than it keeps a connection, then goes on."""
    seen, kinds = hung(f"gige://{ADDRESS}?fps=50", camera, QUICK, more_s=3.0)
    assert seen == sorted(set(seen))
    assert kinds[0] in ("silent", "unplugged") and kinds[-1] == "recovered" and len(kinds) == len(set(kinds)), kinds
