"""Network cameras over HTTP: a real server, whole pictures only, clear words for everything else."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from camera_servers import WAIT_S, MjpegServer, jpeg, part_image, wait_until
from free_port import free_port

from rdedge.errors import CameraFault, ImageError
from rdedge.events import Event
from rdedge.sources import WatchLimits, open_source
from rdedge.sources.mjpeg import MjpegCamera

pytestmark = pytest.mark.usefixtures("_patient_mjpeg")
QUICK = WatchLimits(retry_s=0.05, retry_cap_s=0.1, refused_retry_s=0.5, settle_frames=3, slow_factor=1e9, silent_s=60.0)


@pytest.mark.parametrize("with_length", [True, False], ids=["with lengths", "without"])
def test_every_picture_comes_whole_and_in_order(with_length: bool) -> None:
    server = MjpegServer(with_length=with_length)
    camera = MjpegCamera(server.uri)
    before_s = time.monotonic()
    for index in range(10):
        frame = camera.read()
        assert frame is not None and frame.index == index
        assert np.abs(frame.image_bgr_u8.astype(int) - part_image(index)).mean() < 4.0
        assert before_s <= frame.captured_at_s <= time.monotonic() and frame.source == server.uri
    assert camera.info.size_hw == (48, 64)
    camera.close()
    camera.close()
    assert camera.read() is None
    server.close()


def test_a_password_opens_the_camera_and_is_never_shown() -> None:
    server = MjpegServer(password="s3 cret")
    uri = f"http://op:s3%20cret@127.0.0.1:{server.port}/video"
    source = open_source(uri)
    frame = next(iter(source))
    assert frame.source == source.name == f"http://op:***@127.0.0.1:{server.port}/video"
    source.close()
    server.close()


def test_a_wrong_password_is_said_and_not_hammered(capfd: pytest.CaptureFixture[str]) -> None:
    server = MjpegServer(password="right")
    events: list[Event] = []
    timer = threading.Timer(1.0, lambda: source.close())

    def note(event: Event) -> None:
        events.append(event)
        if len(events) == 1:
            timer.start()

    source = open_source(f"http://op:wr0ng@127.0.0.1:{server.port}/video", on_event=note, limits=QUICK)
    started_s = time.monotonic()
    assert list(source) == []
    lasted_s = time.monotonic() - started_s
    timer.join()
    assert [event.kind for event in events] == ["credentials"]
    assert "user or password refused; write http://user:password@host" in events[0].text
    assert "wr0ng" not in events[0].text + "".join(capfd.readouterr())
    attempts = 2 + lasted_s / (0.8 * QUICK.refused_retry_s)
    assert server.requests <= 2 * attempts, "an attempt asks twice: without and with the password"
    server.close()


@pytest.mark.parametrize(
    ("uri", "kind", "says"),
    [
        ("http://127.0.0.1:{port}/other", "misconfigured", "answers 404 Not Found; see the camera's manual"),
        ("http://127.0.0.1:{free}/video", "unplugged", "no answer \\(.*refused"),
        ("http://camera.invalid/video", "unplugged", "no answer"),
    ],
)
def test_why_there_is_no_stream_is_said(mjpeg: MjpegServer, uri: str, kind: str, says: str) -> None:
    with pytest.raises(CameraFault, match=says) as caught:
        MjpegCamera(uri.format(port=mjpeg.port, free=free_port()))
    assert caught.value.kind == kind


def test_a_page_is_no_stream() -> None:
    server = MjpegServer(content_type="text/html")
    with pytest.raises(CameraFault, match="is text/html, no stream of JPEGs"):
        MjpegCamera(server.uri)
    server.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[: len(data) // 2], "truncated or damaged JPEG"),
        (lambda data: b"<html>busy</html>", "a part that is no JPEG"),
        (lambda data: b"\xff\xd8" + b"\0" * 500, "truncated or damaged JPEG"),
    ],
    ids=["cut", "text", "zeros"],
)
def test_a_damaged_picture_is_refused_and_the_next_one_read(
    mjpeg: MjpegServer, spoil: Callable[[bytes], bytes], says: str
) -> None:
    mjpeg.picture = lambda index: spoil(jpeg(part_image(index))) if index == 1 else jpeg(part_image(index))
    camera = MjpegCamera(mjpeg.uri)
    assert camera.read() is not None
    with pytest.raises(ImageError, match=says):
        camera.read()
    frame = camera.read()
    assert frame is not None and np.abs(frame.image_bgr_u8.astype(int) - part_image(2)).mean() < 4.0
    camera.close()


def test_a_stream_that_ends_and_one_that_stalls_are_told_apart(
    mjpeg: MjpegServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mjpeg.picture = lambda index: jpeg(part_image(index)) if index < 1 else None
    camera = MjpegCamera(mjpeg.uri)
    camera.read()
    with pytest.raises(CameraFault, match="the stream ended") as ended:
        camera.read()
    camera.close()
    mjpeg.picture = lambda index: b""
    monkeypatch.setattr("rdedge.sources.mjpeg._TIMEOUT_S", 3.0)
    camera = MjpegCamera(mjpeg.uri)
    with pytest.raises(CameraFault, match="timed out") as stalled:
        camera.read()
    camera.close()
    assert (ended.value.kind, stalled.value.kind) == ("unplugged", "silent")


def test_a_stream_that_breaks_off_within_a_picture_has_ended(mjpeg: MjpegServer) -> None:
    mjpeg.picture = lambda index: jpeg(part_image(index)) if index < 1 else None
    mjpeg.promised_more = 1000
    camera = MjpegCamera(mjpeg.uri)
    with pytest.raises(CameraFault, match="the stream ended within a frame"):
        camera.read()
    camera.close()


def test_closing_ends_a_read_that_waits(mjpeg: MjpegServer) -> None:
    mjpeg.picture = lambda index: b""
    camera = MjpegCamera(mjpeg.uri)
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.append(camera.read()))
    reader.start()
    time.sleep(0.1)
    started_s = time.monotonic()
    camera.close()
    reader.join(30)
    assert got == [None] and time.monotonic() - started_s < 0.5 * WAIT_S, "before its time-out"


def test_frozen_black_damaged_and_resized_frames_of_a_live_camera_give_no_parts(mjpeg: MjpegServer) -> None:
    events: list[Event] = []
    frozen, black = jpeg(part_image(0)), jpeg(np.zeros((48, 64, 3), np.uint8))
    now: dict[str, object] = {"what": "good"}
    stills = {"frozen": frozen, "black": black, "resized": b"", "bad-frame": frozen[:200]}
    mjpeg.picture = lambda index: (
        stills.get(str(now["what"]))
        or jpeg(part_image(1000 + index, (24, 32) if now["what"] == "resized" else (48, 64)))
    )
    limits = WatchLimits(frozen_s=0.1, reopen_s=60.0, settle_frames=3, slow_factor=1e9, silent_s=60.0)
    source = open_source(mjpeg.uri, on_event=events.append, limits=limits)
    seen: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: seen.extend(frame.image_bgr_u8 for frame in source))
    thread.start()
    for kind in stills:
        good_before = len(seen)
        wait_until(lambda before=good_before: len(seen) >= before + 5, "good frames")
        now["what"] = kind
        wait_until(lambda kind=kind: kind in source.info.faults, kind)
        given = len(seen)
        sent = mjpeg.sent
        wait_until(lambda sent=sent: mjpeg.sent >= sent + 10, "more of the same")
        assert len(seen) <= given + 1, "at most the one that was under way"
        now["what"] = "good"
        wait_until(lambda kind=kind: kind not in source.info.faults, f"{kind} is over")
    source.close()
    thread.join(30)
    told = [event.kind for event in events]
    assert told == [word for kind in stills for word in (kind, "recovered")]
    assert all(image.shape == (48, 64, 3) and 100 < image.mean() < 140 for image in seen)


def test_a_camera_that_comes_and_goes_is_one_source(mjpeg: MjpegServer) -> None:
    events: list[Event] = []
    ends = itertools.count(1)
    mjpeg.picture = lambda index: None if index % 7 == 6 and next(ends) % 2 else jpeg(part_image(index))
    source = open_source(mjpeg.uri, on_event=events.append, limits=QUICK)
    frames = list(itertools.islice(source, 30))
    assert [frame.index for frame in frames] == list(range(30))
    assert {event.kind for event in events} == {"unplugged", "recovered"}
