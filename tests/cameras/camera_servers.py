"""Real cameras on loopback for the tests: RTSP and GigE Vision in processes that can be killed, MJPEG in a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.events import Event
from rdedge.sources import WatchLimits, open_source

HERE = Path(__file__).parent
START_S = 30.0
WAIT_S = 60.0


def needs(module: str, version: str, package: str) -> str | None:
    """Why a test of this library cannot run here, naming the missing package; None where it can."""
    code = f"import gi; gi.require_version({module!r}, {version!r}); from gi.repository import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S)
    return None if done.returncode == 0 else f"needs {package} and PyGObject: {done.stderr.strip().splitlines()[-1]}"


class Server:
    """A camera in a process of its own."""

    def __init__(self, script: str, *arguments: str):
        self._command = [sys.executable, str(HERE / script), *arguments]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "ready\n", f"{self._command} did not start: {said!r}"

    def kill(self) -> None:
        """SIGKILL, as when its plug is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def running(script: str, *arguments: str) -> Iterator[Server]:
    server = Server(script, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def hung(uri: str, server: Server, limits: WatchLimits, *, more_s: float) -> tuple[list[int], list[str]]:
    """A camera that is stopped by SIGSTOP until ``more_s`` after that is told, then goes on. The numbers of all frames,
    and the kinds told from its stop until all is over."""
    events: list[Event] = []
    timers: list[threading.Timer] = []

    def go_on_after(wait_s: float) -> None:
        timers.append(threading.Timer(wait_s, server.signal, [signal.SIGCONT]))
        timers[-1].start()

    def note(event: Event) -> None:
        events.append(event)
        if len(timers) == 1:
            go_on_after(more_s)

    source = open_source(uri, on_event=note, limits=limits)
    frames = iter(source)
    seen: list[int] = []
    try:
        while len(seen) < 10 or source.info.faults:
            seen.append(next(frames).index)
        told = len(events)
        server.signal(signal.SIGSTOP)
        go_on_after(WAIT_S)  # else frames that are never missed would be waited for without end
        deadline_s = time.monotonic() + 2 * WAIT_S
        while len(events) == told or source.info.faults:
            assert time.monotonic() < deadline_s, "that it hangs is not told"
            seen.append(next(frames).index)
        kinds = [event.kind for event in events[told:]]
        seen += [next(frames).index for _ in range(10)]
    finally:
        source.close()
        for timer in timers:
            timer.cancel()
            timer.join()
        server.signal(signal.SIGCONT)
    return seen, kinds


def part_image(index: int, size_hw: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """A bright square on grey with a sensor's noise, (H, W, 3)."""
    image = np.full((*size_hw, 3), 110, np.uint8)
    image[size_hw[0] // 4 : size_hw[0] // 2, size_hw[1] // 4 : size_hw[1] // 2] = 190
    noise = np.random.default_rng(index).integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


class MjpegServer:
    """An HTTP camera whose pictures, rate and manners a test may change while it runs.

    ``picture(index)`` gives a JPEG's bytes; None ends the stream, an empty one is a pause.
    """

    def __init__(self, *, password: str | None = None, with_length: bool = True, content_type: str | None = None):
        self.picture: Callable[[int], bytes | None] = lambda index: jpeg(part_image(index))
        self.interval_s = 0.01
        self.promised_more = 0  # bytes that a frame's length says beyond what comes
        self.requests = 0
        self.sent = 0
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.requests += 1
                expected = "Basic " + b64encode(f"op:{password}".encode()).decode()
                if self.path != "/video":
                    self.send_error(404)
                elif password is not None and self.headers.get("Authorization") != expected:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                else:
                    self.send_response(200)
                    self.send_header("Content-Type", content_type or "multipart/x-mixed-replace; boundary=frame")
                    self.end_headers()
                    camera._serve(self, with_length)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._stopping = threading.Event()
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}/video"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _serve(self, handler: BaseHTTPRequestHandler, with_length: bool) -> None:
        while not self._stopping.is_set():
            data = self.picture(self.sent)
            if data is None:
                return
            if data:
                self.sent += 1
                length = f"Content-Length: {len(data) + self.promised_more}\r\n" if with_length else ""
                try:
                    handler.wfile.write(f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode())
                    handler.wfile.write(data + b"\r\n")
                except OSError:  # the reader has left
                    return
            self._stopping.wait(self.interval_s)

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)


@contextmanager
def showing_levels(low: int, high: int, interval_s: float) -> Iterator[MjpegServer]:
    """A card of grey levels from ``low`` to below ``high``, with a sensor's noise: no two of 16 pictures are equal."""
    rng = np.random.default_rng(1)
    pictures = [jpeg(rng.integers(low, high, (48, 64, 3)).astype(np.uint8)) for _ in range(16)]
    server = MjpegServer()
    server.picture = lambda index: pictures[index % 16]
    server.interval_s = interval_s
    try:
        yield server
    finally:
        server.close()


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out: {what}"
        time.sleep(0.005)
