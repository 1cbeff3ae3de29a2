"""What `rdedge selftest` says of cameras and sinks: real brokers, servers and registers, and no verdict in any."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from broker_outage import Consumer
from free_port import free_port
from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from sink_parts import TIMEOUT_S, Broker

from rdedge.cli import main
from rdedge_export import selftest_line
from rdedge_export.selftest_line import examine_camera, examine_line
from rdedge_export.selftest_result import Result

WriteVideo = Callable[[str, list[int]], Path]


@pytest.fixture(autouse=True)
def _peers_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's brokers and servers are there none the less."""
    monkeypatch.setattr(selftest_line, "_TIMEOUT_S", TIMEOUT_S)


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Frames of these levels with a sensor's noise; level -1: the very picture of before."""

    def write(name: str, levels: list[int]) -> Path:
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 25.0, (64, 48))
        assert writer.isOpened()
        noise = np.random.default_rng(0)
        picture = np.zeros((48, 64, 3), np.uint8)
        for level in levels:
            if level >= 0:
                picture = np.clip(level + noise.integers(-5, 6, (48, 64, 3)), 0, 255).astype(np.uint8)
            writer.write(picture)
        writer.release()
        return path

    return write


@pytest.mark.parametrize(
    ("levels", "has_passed", "says"),
    [
        ([128] * 80, True, "60 frames of 64x48"),
        ([0] * 40, False, "40 of 40 frames are no pictures: the picture is black"),
        ([262] * 40, False, "the picture is saturated"),
        ([128] + [-1] * 40, False, "40 of 41 frames are no pictures: the picture is frozen"),
        ([128] * 30 + [0] * 5, True, "; 5 of them black, frozen or damaged"),
        ([128], False, "gave 1 frames; check the camera"),
    ],
    ids=["good", "black", "saturated", "frozen", "some", "one"],
)
def test_a_camera_must_give_pictures(levels: list[int], has_passed: bool, says: str, write_video: WriteVideo) -> None:
    result = examine_camera("camera", str(write_video("part.mkv", levels)))
    assert (result.has_passed, says in result.text) == (has_passed, True), result


def test_a_camera_that_is_not_there_or_waits() -> None:
    missing = examine_camera("camera", "v4l2:///dev/video99")
    assert missing.has_passed is False and "/dev/video99" in missing.text
    waiting = examine_camera("camera top", "trigger+v4l2:///dev/video0#from=udp:0.0.0.0:9000")
    assert waiting == Result(
        "camera top", None, "trigger+v4l2:///dev/video0 waits for its trigger; test it without trigger+"
    )


def test_a_camera_slower_than_it_says_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that promises 30 frames a second and gives 10."""
    noise = np.random.default_rng(0)
    frames = iter(range(1000))

    def read() -> SimpleNamespace:
        image_bgr_u8 = noise.integers(90, 110, (48, 64, 3), dtype=np.uint8)
        return SimpleNamespace(image_bgr_u8=image_bgr_u8, captured_at_s=next(frames) / 10, part_id=None)

    for promised, has_passed in ((30.0, False), (19.0, True), (None, True)):
        camera = SimpleNamespace(name="slow", read=read, info=SimpleNamespace(fps=promised), close=lambda: None)
        monkeypatch.setattr(selftest_line, "open_camera", lambda uri, camera=camera: camera)
        result = examine_camera("camera", "v4l2:///dev/video0")
        assert result.has_passed is has_passed, result
        assert "10.0 a second" in result.text


@pytest.fixture
def site(tmp_path: Path, engine_bundle: Path, write_video: WriteVideo) -> Path:
    """A folder with a bundle and a video; ``line`` writes its file."""
    write_video("part.mkv", [128] * 70)
    return tmp_path


def line(site: Path, sinks: str, cameras: tuple[str, ...] = ("top",)) -> dict[str, Result]:
    text = f'out = "out"\nbundle = "bundle"\n{sinks}\n'
    for name in cameras:
        text += f'[[camera]]\nname = "{name}"\nuri = "video:part.mkv"\npolicy = "every"\n'
    (site / "line.toml").write_text(text)
    return {result.name: result for result in examine_line(site / "line.toml")}


def test_cameras_and_folders_of_a_line(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = line(site, "[sinks.jsonl]\n[sinks.pictures]", ("top", "side"))
    assert list(results) == ["line", "camera top", "camera side", "files top"], "what cameras share is tested once"
    assert all(result.has_passed for result in results.values())
    assert not (site / "out").exists(), "looking leaves nothing behind"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=99_000_000))
    assert "has 99 MB left; free some" in line(site, "[sinks.jsonl]")["files top"].text
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "may not be written" in line(site, "[sinks.jsonl]")["files top"].text


def test_every_fault_of_the_file_is_told(site: Path, engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = line(site, "[sinks.jsonl]\nmax_mb = -1\n[sinks.mqtt]")
    assert list(results) == ["line"] and results["line"].has_passed is False
    assert "sinks.jsonl.max_mb" in results["line"].text and "sinks.mqtt.host" in results["line"].text
    command = ["selftest", str(engine_bundle), "--backend", "onnxruntime", "--seconds", "0.02", "--line"]
    assert main([*command, str(site / "line.toml")]) == 2
    assert "FAIL  line  " in capsys.readouterr().out


def test_a_broker_that_takes_us_and_hears_nothing(site: Path) -> None:
    (site / "broker").mkdir()
    broker = Broker(site / "broker")
    broker.start()
    consumer = Consumer(broker.port)
    try:
        result = line(site, f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {broker.port}')["mqtt top"]
        assert result == Result("mqtt top", True, f"mqtt://127.0.0.1:{broker.port} takes us")
        assert consumer.messages == []
    finally:
        consumer.close()
        broker.stop()


def test_a_broker_that_refuses_us_and_one_that_is_not_there(site: Path) -> None:
    (site / "broker").mkdir()
    (site / "users").write_text("")
    (site / "mqtt.password").write_text("wrong")
    broker = Broker(site / "broker", extra=f"allow_anonymous false\npassword_file {site / 'users'}\n")
    broker.start()
    try:
        table = f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "press4"\n'
        result = line(site, table + 'password_file = "mqtt.password"')["mqtt top"]
        assert result.has_passed is False and "Not authorized; check the broker" in result.text
    finally:
        broker.stop()
    away = line(site, f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {free_port()}')["mqtt top"]
    assert away.has_passed is False and "nobody answers there" in away.text


class Posts(BaseHTTPRequestHandler):
    """Counts requests."""

    count = 0

    def do_POST(self) -> None:
        Posts.count += 1


def test_a_web_server_is_reached_and_nothing_posted(site: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Posts) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        result = line(site, f'[sinks.webhook]\nurl = "http://127.0.0.1:{port}/verdicts"')["webhook top"]
        server.shutdown()
        thread.join()
    assert result == Result("webhook top", True, f"127.0.0.1:{port} answers; nothing was posted") and Posts.count == 0
    away = line(site, f'[sinks.webhook]\nurl = "http://127.0.0.1:{free_port()}/"')["webhook top"]
    assert away.has_passed is False and "Connection refused; check the server" in away.text


def test_a_certificate_that_is_not_trusted_fails(site: Path) -> None:
    key, certificate = site / "key.pem", site / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        *subject,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Posts) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        table = f'[sinks.webhook]\nurl = "https://127.0.0.1:{server.server_address[1]}/"\n'
        stranger = line(site, table)["webhook top"]
        known = line(site, table + 'tls = { ca_file = "cert.pem" }')["webhook top"]
        server.shutdown()
        thread.join()
    assert stranger.has_passed is False and "CERTIFICATE_VERIFY_FAILED" in stranger.text
    assert known.has_passed, known


@pytest.fixture
def plc() -> Iterator[tuple[int, list[int]]]:
    """A Modbus server with registers 100 to 107 of device 3: its port, and the function codes it was asked for."""
    port, codes, ready, parts = free_port(), list[int](), threading.Event(), SimpleNamespace()

    def note(is_sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        if not is_sending:
            codes.append(pdu.function_code)
        return pdu

    async def serve() -> None:
        device = SimDevice(id=3, simdata=[SimData(100, values=[7] * 8, datatype=DataType.REGISTERS)])
        server = ModbusTcpServer(device, address=("127.0.0.1", port), trace_pdu=note)
        await server.serve_forever(background=True)
        parts.loop, parts.stopped = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await parts.stopped.wait()
        await server.shutdown()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(TIMEOUT_S)
    yield port, codes
    parts.loop.call_soon_threadsafe(parts.stopped.set)
    thread.join(TIMEOUT_S)


def test_a_plcs_registers_are_read_and_not_written(site: Path, plc: tuple[int, list[int]]) -> None:
    port, codes = plc
    table = f'[sinks.modbus]\nhost = "127.0.0.1"\nport = {port}\ndevice_id = 3\naddress = '
    result = line(site, f"{table}100")["modbus top"]
    assert result.has_passed and "registers 100 to 107 can be read" in result.text
    assert set(codes) == {3}, "3 reads holding registers, 6 and 16 write them"
    outside = line(site, f"{table}104")["modbus top"]
    assert outside.has_passed is False and "the PLC refuses" in outside.text
    away = line(site, f'[sinks.modbus]\nhost = "127.0.0.1"\nport = {free_port()}')["modbus top"]
    assert away.has_passed is False and "nobody answers there" in away.text


def test_pins_are_looked_at_and_not_driven(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real gpiod where there is no chip; a chip with its calls of the kernel replaced, as there is none here."""
    absent = line(site, '[sinks.gpio]\nchip = "/dev/gpiochip99"\nline = 7')["gpio top"]
    assert absent.has_passed is False and "/dev/gpiochip99, lines [7]" in absent.text

    class Chip:
        def __init__(self, path: str):
            self.path = path

        def __enter__(self) -> Chip:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

        def get_line_info(self, name: int | str) -> SimpleNamespace:
            if name == "PQ.99":
                raise OSError(22, "no such line")
            return SimpleNamespace(offset=name, used=name == 8, consumer="other" if name == 8 else "")

    monkeypatch.setattr("gpiod.Chip", Chip)
    assert (
        line(site, "[sinks.gpio]\nline = 7\nheartbeat_line = 9")["gpio top"].text
        == "/dev/gpiochip0, lines [7, 9]: free"
    )
    assert "used already: line 8 by other" in line(site, "[sinks.gpio]\nline = 7\nheartbeat_line = 8")["gpio top"].text
    assert line(site, '[sinks.gpio]\nline = "PQ.99"')["gpio top"].has_passed is False
