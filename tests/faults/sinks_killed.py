"""A process that writes to all sinks is killed again and again: what is left is whole, and nothing it told is missing.

``python tests/faults/sinks_killed.py --kills 50`` prints one JSON object; exit code 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
from broker_outage import Consumer
from sink_parts import TIMEOUT_S, Broker, inspection

import rdedge.sinks.held
from rdedge.events import Event
from rdedge.sinks import DetachedSink, DiskBudget, JsonLinesSink, OverlaySink, Sink
from rdedge.sinks.mqtt import MqttSink
from rdedge.sinks.record import new_session
from rdedge.sinks.spool import decode
from rdedge.sinks.webhook import WebhookSink

BUDGET_BYTES = 2_000_000
KEEP_REJECTS = 5
SPOOLS = ("spool-mqtt", "spool-webhook")
STARTS = 5  # within which all that was left is delivered: an answer that comes late ends what a start delivers


def line(folder: Path, broker_port: int, server_port: int, parts: int, told: Connection) -> None:
    """The victim: judged parts go to all sinks; each part's id is told when all of them have taken it."""
    rdedge.sinks.held._PATIENCE_S = TIMEOUT_S  # on a busy machine, so that what is told is what the kernel has
    session = new_session()
    common = {"session": session, "camera": "top", "on_event": _ignore, "drain_s": TIMEOUT_S}
    budget = DiskBudget(folder / "rejects", max_bytes=BUDGET_BYTES, keep_rejects=KEEP_REJECTS)
    overlay = OverlaySink(folder / "rejects" / session, None, good_every=7, budget=budget)
    sinks: list[Sink] = [
        JsonLinesSink(
            folder / "verdicts.jsonl", session, camera="top", max_bytes=200_000, keep_files=10_000, on_event=_ignore
        ),
        DetachedSink(overlay, wants=overlay.wants, name="pictures", camera="top", on_event=_ignore, drain_s=TIMEOUT_S),
        MqttSink(host="127.0.0.1", port=broker_port, spool=folder / SPOOLS[0], **common),
        WebhookSink(url=f"http://127.0.0.1:{server_port}/", spool=folder / SPOOLS[1], **common),
    ]
    for index in range(parts):
        seen = inspection(index, is_anomalous=index % 3 == 0, size_hw=(120, 160))
        for sink in sinks:
            sink.write(seen)
        told.send(f"{session}/top/{index}")
        time.sleep(0.002)
    for sink in sinks:
        sink.close()


def _ignore(event: Event) -> None:
    pass


class Server(ThreadingHTTPServer):
    """Takes webhooks while ``is_there``, else answers 503."""

    daemon_threads = True

    def __init__(self) -> None:
        self.ids: Counter[str] = Counter()
        self.is_there = True
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A killed client is what this is about."""

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_there:
            self.server.ids.update(record["id"] for record in json.loads(body)["verdicts"])
        self.send_response(200 if self.server.is_there else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def damage(folder: Path) -> list[str]:
    """What a reader would stumble over after a kill. A last line without its end is none: the next start cuts it."""
    found = []
    for path in folder.glob("verdicts*.jsonl"):
        for text in path.read_bytes().splitlines(keepends=True):
            if text.endswith(b"\n") and not _is_json(text):
                found.append(f"{path.name}: {text[:60]!r}")
    for path in folder.glob("spool-*/*.spool"):
        for text in path.read_bytes().splitlines(keepends=True):
            if text.endswith(b"\n") and decode(text) is None:
                found.append(f"{path.name}: {text[:60]!r}")
    for path in folder.rglob("*.jpg"):
        data = path.read_bytes()
        if not data.endswith(b"\xff\xd9") or cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None:
            found.append(f"{path.name}: not a whole picture")
    return found


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def run(folder: Path, *, kills: int, seed: int = 1) -> dict[str, object]:
    """Kill at random moments, receivers there or not; then let one process finish and compare."""
    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sinks_killed", "paho.mqtt.client"])
    (folder / "broker").mkdir()
    broker, server, out = Broker(folder / "broker"), Server(), folder / "out"
    broker.start()
    consumer = Consumer(broker.port, "rdedge/top/verdict")
    told: list[str] = []
    found: list[str] = []
    half_written = killed_with_work = 0

    def start(parts: int) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=line, args=(out, broker.port, server.server_port, parts, sending))
        child.start()
        sending.close()
        return child, receiving

    try:
        for kill in range(kills):
            server.is_there = rng.random() < 0.5
            if kill % 5 == 3:
                broker.stop()
            child, receiving = start(1_000_000)
            if kill % 4:
                receiving.poll(TIMEOUT_S)  # else it may be killed while it starts
            time.sleep(rng.uniform(0.0, 1.0))
            child.kill()
            child.join(TIMEOUT_S)
            killed_with_work += listened(receiving, told) > 0
            half_written += any(out.rglob(".*.partial-*"))
            found += damage(out)
            if kill % 5 == 3:
                broker.start()
        server.is_there = True
        for _ in range(STARTS):
            child, receiving = start(10)
            listened(receiving, told)
            child.join(10 * TIMEOUT_S)
            exit_code = child.exitcode
            if exit_code != 0 or left_in_spools(out) == 0:
                break
        consumer.wait_for(told)
    finally:
        broker.stop()
        consumer.close()
        server.stop()
    lines = [json.loads(text)["id"] for path in out.glob("verdicts*.jsonl") for text in path.read_text().splitlines()]
    return {
        "kills": kills,
        "kills_while_writing": killed_with_work,
        "kills_with_half_a_picture": half_written,
        "told": len(told),
        "damaged": found + damage(out),
        "last_exit_code": exit_code,
        "lines": {"missing": len(set(told) - set(lines)), "twice": len(lines) - len(set(lines))},
        "mqtt": _compared(told, consumer.ids),
        "webhook": _compared(told, server.ids),
        "left_in_spools": left_in_spools(out),
        "half_pictures_left": sum(1 for _ in out.rglob(".*.partial-*")),
        "picture_bytes": sum(path.stat().st_size for path in out.rglob("*.jpg")),
        "picture_budget": BUDGET_BYTES,
    }


def listened(receiving: Connection, told: list[str]) -> int:
    """How many more ids were told until the other end was closed."""
    before = len(told)
    try:
        while True:
            told.append(receiving.recv())
    except EOFError:
        return len(told) - before


def left_in_spools(folder: Path) -> int:
    """Files of records that are still to be delivered."""
    return sum(1 for spool in SPOOLS for _ in (folder / spool).glob("*.spool"))


def _compared(told: list[str], arrived: Counter[str]) -> dict[str, int]:
    return {"missing": len(set(told) - arrived.keys()), "repeated": sum(arrived.values()) - len(arrived)}


def is_right(result: dict[str, object]) -> bool:
    """Nothing damaged, missing or left over."""
    missing = [result[name]["missing"] for name in ("lines", "mqtt", "webhook")]  # type: ignore[index]
    return (
        not result["damaged"]
        and not any(missing)
        and result["lines"]["twice"] == 0  # type: ignore[index]
        and (result["last_exit_code"], result["left_in_spools"], result["half_pictures_left"]) == (0, 0, 0)
        and result["picture_bytes"] <= BUDGET_BYTES  # type: ignore[operator]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), kills=args.kills)
    print(json.dumps(result, indent=1))
    return 0 if is_right(result) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
