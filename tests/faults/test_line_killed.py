"""SIGKILL of a whole line at 50 random moments: every file readable, the spools whole, the next start clean, and in the
end everything that was judged has been delivered."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext
from pathlib import Path

import cv2
import numpy as np
import pytest
from sink_parts import run_line

KILLS = 50
TIMEOUT_S = 120.0
PARTS = 3000
STARTS = 5  # within which all that was left is delivered: an answer that comes late ends what a start delivers

pytestmark = pytest.mark.slow


class Receiver:
    """A server that takes records, or is away."""

    def __init__(self) -> None:
        self.got: dict[str, dict[str, object]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.got |= {record["id"]: record for record in body["verdicts"]}
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Not wanted."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    yield opened
    opened.close()


@pytest.fixture
def site(tmp_path: Path, tiny_bundle: Path) -> Path:
    """Two cameras of 3000 parts; the second's server never listens, nor does the broker."""
    (tmp_path / "many").mkdir()
    cv2.imwrite(str(tmp_path / "good.png"), np.full((64, 64, 3), 204, np.uint8))
    cv2.imwrite(str(tmp_path / "bad.png"), np.full((64, 64, 3), 51, np.uint8))
    for index in range(PARTS):
        os.link(tmp_path / ("bad.png" if index % 50 == 7 else "good.png"), tmp_path / "many" / f"{index:04d}.png")
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    return tmp_path


def write_line(site: Path, port: int, parts: str) -> Path:
    camera = f'[[camera]]\nuri = "folder:{parts}"\npolicy = "every"\nthreshold = 0.5\n'
    text = (
        'out = "out"\nbundle = "bundle"\nbackend = "fake"\ndrain_s = 60\n'
        "[sinks.jsonl]\nmax_mb = 1\n[sinks.pictures]\nkeep_rejects = 5\n"
        f'[sinks.webhook]\nurl = "http://127.0.0.1:{port}/"\n[sinks.mqtt]\nhost = "127.0.0.1"\nport = 9\n'
        f'{camera}name = "top"\n{camera}name = "side"\n'
    )
    path = site / "line.toml"
    path.write_text(text)
    return path


def test_nothing_judged_is_lost(site: Path, receiver: Receiver, capfd: pytest.CaptureFixture[str]) -> None:
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sink_parts", "rdedge.run_verb", "rdedge.sinks.webhook", "rdedge.sinks.mqtt", "paho.mqtt.client"]
    )
    away = Receiver()
    away.close()
    path = write_line(site, away.port, "many")
    rng = random.Random(3)
    was_writing = 0
    for _ in range(KILLS):
        child = context.Process(target=run_line, args=(str(path),))
        child.start()
        before = judged(site)
        wait_until(lambda: judged(site) != before or not child.is_alive())  # noqa: B023 (asked at once)
        child.join(rng.uniform(0.0, 0.5))
        assert child.is_alive(), "it judges 3000 parts twice"
        child.kill()
        child.join(TIMEOUT_S)
        was_writing += judged(site) != before
        check_files(site)
    assert was_writing > KILLS * 0.8 and left_in_spool(site)
    path = write_line(site, receiver.port, "good.png")
    for _ in range(STARTS):
        child = context.Process(target=run_line, args=(str(path),))
        child.start()
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
        if not left_in_spool(site):
            break
    check_delivered(site, receiver.got)
    assert "damaged" not in capfd.readouterr().err


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.001)


def judged(site: Path) -> int:
    return sum(path.stat().st_size for path in site.glob("out/*/verdicts*.jsonl"))


def left_in_spool(site: Path) -> bool:
    """Whether records for the server that comes back are still to be delivered."""
    return any(site.glob("out/*/spool-webhook/*.spool"))


def records(site: Path) -> list[dict[str, object]]:
    lines = []
    for path in site.glob("out/*/verdicts*.jsonl"):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # the last may be half a line, which the next start cuts off
        lines += [json.loads(line) for line in whole.splitlines()]
    return lines


def check_files(site: Path) -> None:
    records(site)
    for path in site.glob("out/*/rejects/*/*.jpg"):
        assert cv2.imread(str(path)) is not None, path


def check_delivered(site: Path, got: dict[str, dict[str, object]]) -> None:
    """All but the frame in work at each kill, whose line is written before it goes to the spool."""
    written = {str(record["id"]): record for record in records(site)}
    assert len(written) > 1000
    newest: dict[tuple[str, str], tuple[int, str]] = {}
    for name, record in written.items():
        key, index = (str(record["session"]), str(record["camera"])), int(str(record["index"]))
        newest[key] = max(newest.get(key, (-1, "")), (index, name))
    missing = set(written) - set(got)
    assert len(missing) <= KILLS, "one frame is in work at a time"
    assert missing <= {name for _, name in newest.values()}
    assert all(got[name]["score"] == record["score"] for name, record in written.items() if name in got)
