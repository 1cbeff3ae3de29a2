"""One frame for one trigger, the right one, with the part's name; a part that was not caught is said to be."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
from camera_servers import MjpegServer, jpeg, part_image, wait_until
from free_port import free_port

from rdedge.errors import CameraFault, ImageError, UsageError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.sources import SourceInfo, open_source
from rdedge.sources.trigger import LineTriggers, UdpTriggers
from rdedge.sources.triggered import FiredCamera, PickedCamera
from rdedge.sources.uri import options_of

KNOWN = ("from", "delay_ms", "max_lag_ms")


class Sender:
    def __init__(self, port: int):
        self._port = port

    def __call__(self, text: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.sendto(text.encode(), ("127.0.0.1", self._port))


@pytest.fixture
def triggers() -> Iterator[UdpTriggers]:
    inbox = UdpTriggers("127.0.0.1", 0)
    yield inbox
    inbox.close()
    inbox.close()


class Clocked:
    """A camera whose picture tells when it was taken: a hundred frames a second, 30 ms underway."""

    name = "clocked"
    info = SourceInfo(fps=100.0)

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.fired = 0
        self.taken_s: list[float] = []  # when each read began
        self.is_software_triggered = True
        self._closed = threading.Event()

    def read(self) -> Frame | None:
        taken_s = time.monotonic()
        self.taken_s.append(taken_s)
        if self._closed.wait(0.01):
            return None
        if (fault := self.fault) is not None:
            raise fault
        image = np.full((16, 16, 3), 100, np.uint8)
        return Frame(
            image_bgr_u8=image, index=0, captured_at_s=time.monotonic() + 0.03, source="x", device_timestamp_s=taken_s
        )

    def fire(self) -> None:
        self.fired += 1

    def close(self) -> None:
        self._closed.set()


def options(text: str = "") -> object:
    return options_of(text, "x", known=KNOWN)


@pytest.mark.parametrize("delay_ms", [0, 150])
def test_a_free_running_camera_gives_the_first_frame_taken_after_the_trigger(
    triggers: UdpTriggers, delay_ms: int
) -> None:
    device, delay_s = Clocked(), delay_ms / 1e3
    settings = f"max_lag_ms=60000&delay_ms={delay_ms}" if delay_ms else "max_lag_ms=60000"
    camera = PickedCamera(device, triggers, options(settings))  # type: ignore[arg-type]
    camera._recent = deque(maxlen=100_000)  # a busy machine may look at them late
    for part in range(5):
        before_s = time.monotonic()
        triggers.put(f"P{part}")
        after_s = time.monotonic()
        frame = camera.read()
        assert frame is not None and frame.part_id == f"P{part}" and frame.device_timestamp_s is not None
        picked_s = frame.device_timestamp_s
        assert before_s + delay_s <= picked_s
        assert not [taken_s for taken_s in device.taken_s if after_s + delay_s < taken_s < picked_s]
    camera.close()
    assert camera.read() is None


def test_triggers_that_pile_up_get_no_wrong_part(triggers: UdpTriggers) -> None:
    """The second part has passed before its trigger is looked at."""
    camera = FiredCamera(Clocked(), triggers, options("max_lag_ms=100"))  # type: ignore[arg-type]
    Sender(triggers.port)("early")
    wait_until(lambda: triggers._waiting, "it is here")
    time.sleep(0.2)
    with pytest.raises(
        ImageError, match=r"part early was not caught: \d+ ms after its trigger there was no frame of it"
    ):
        camera.read()
    camera.close()


def test_triggers_that_nobody_could_take_are_counted(triggers: UdpTriggers) -> None:
    for part in range(1007):
        triggers.put(str(part))
    camera = FiredCamera(Clocked(), triggers, options("max_lag_ms=60000"))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="7 parts were not caught: too many triggers waited"):
        camera.read()
    frame = camera.read()
    assert frame is not None and frame.part_id == "7"
    camera.close()


def test_each_firing_is_one_frame(triggers: UdpTriggers) -> None:
    device = Clocked()
    camera = FiredCamera(device, triggers, options("max_lag_ms=60000"))  # type: ignore[arg-type]
    for part in ("a", "b", "c"):
        Sender(triggers.port)(part)
        frame = camera.read()
        assert frame is not None and frame.part_id == part
    assert device.fired == 3 and camera.info.is_triggered
    camera.close()


def test_a_camera_that_dies_between_two_parts_is_noticed_before_the_next(triggers: UdpTriggers) -> None:
    device = Clocked()
    camera = PickedCamera(device, triggers, options())  # type: ignore[arg-type]
    device.fault = CameraFault("unplugged", "cable", remedy="plug it in")
    with pytest.raises(CameraFault, match="cable"):
        camera.read()
    camera.close()


def test_a_part_whose_frame_is_damaged_is_named(triggers: UdpTriggers) -> None:
    device = Clocked()
    camera = PickedCamera(device, triggers, options("delay_ms=100&max_lag_ms=60000"))  # type: ignore[arg-type]
    device.fault = ImageError("torn", remedy="x")
    Sender(triggers.port)("P1")
    with pytest.raises(ImageError, match=r"part P1 was not caught \(torn\)"):
        camera.read()
    device.fault = None
    reads = len(device.taken_s)
    wait_until(lambda: len(device.taken_s) > reads, "the last damaged frame is past")
    Sender(triggers.port)("P2")
    frame = camera.read()
    assert frame is not None and frame.part_id == "P2"
    camera.close()


@pytest.mark.parametrize(
    ("sent", "part_id"),
    [("P-17\n", "P-17"), ("", "1"), ("größe 1", "größe 1"), ("a\x1b[31mb", "a\\x1b[31mb"), ("x" * 500, "x" * 128)],
    ids=["line end", "no name", "UTF-8", "control", "long"],
)
def test_a_name_of_a_part_is_short_and_printable(triggers: UdpTriggers, sent: str, part_id: str) -> None:
    Sender(triggers.port)(sent)
    trigger = triggers.next(30)
    assert trigger is not None and trigger.part_id == part_id


def test_bytes_that_are_no_text_are_a_part_too(triggers: UdpTriggers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(b"\xff\xfe\x00", ("127.0.0.1", triggers.port))
    trigger = triggers.next(30)
    assert trigger is not None and trigger.part_id.isprintable()


def test_a_port_in_use_is_refused(triggers: UdpTriggers) -> None:
    with pytest.raises(UsageError, match=f"triggers from udp:127.0.0.1:{triggers.port}: Address already in use"):
        UdpTriggers("127.0.0.1", triggers.port)


def test_lines_of_standard_input_are_triggers_until_it_ends() -> None:
    read, write = os.pipe()
    triggers = LineTriggers(read)
    os.write(write, b"P1\nP")
    first = triggers.next(30)
    os.write(write, b"2\nP3")
    os.close(write)
    rest = [triggers.next(30), triggers.next(30)]
    assert [t.part_id if t else None for t in (first, *rest)] == ["P1", "P2", "P3"]
    assert triggers.next(30) is None and triggers.has_ended
    triggers.close()
    os.close(read)


def test_input_is_left_alone_until_it_is_wanted() -> None:
    read, write = os.pipe()
    os.write(write, b"P1\n")
    LineTriggers(read).close()
    assert os.read(read, 100) == b"P1\n"
    os.close(read)
    os.close(write)


@pytest.mark.usefixtures("_patient_mjpeg")
def test_parts_of_a_real_camera_by_udp(mjpeg: MjpegServer) -> None:
    """Watched, over HTTP: parts in order, each once; a black one is named; between parts nothing comes."""
    events: list[Event] = []
    port = free_port()
    is_dark = threading.Event()
    mjpeg.picture = lambda index: jpeg(np.zeros((48, 64, 3), np.uint8)) if is_dark.is_set() else jpeg(part_image(index))
    source = open_source(f"trigger+{mjpeg.uri}#from=udp:127.0.0.1:{port}&max_lag_ms=60000", on_event=events.append)
    parts: list[str | None] = []
    thread = threading.Thread(target=lambda: parts.extend(frame.part_id for frame in source))
    thread.start()
    wait_until(lambda: source.info.is_triggered, "open")
    recent = source._reader._camera._recent  # type: ignore[attr-defined]
    send = Sender(port)
    for part in ("P1", "P2", "P3"):
        send(part)
        wait_until(lambda part=part: part in parts, part)
    is_dark.set()
    wait_until(lambda: recent[-1].image_bgr_u8.max() < 50, "dark frames")
    send("P4")
    wait_until(lambda: any(event.kind == "part-lost" for event in events), "P4 is lost")
    is_dark.clear()
    wait_until(lambda: recent[-1].image_bgr_u8.max() > 50, "light")
    send("P5")
    wait_until(lambda: "P5" in parts, "P5")
    source.close()
    thread.join(30)
    assert parts == ["P1", "P2", "P3", "P5"]
    assert [event.kind for event in events] == ["black", "part-lost"]
    assert "part P4 gets no verdict: the picture is black" in events[1].text
