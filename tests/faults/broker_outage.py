"""The broker goes away under a running line: does every verdict arrive, and none twice once ids are filtered?

``python tests/faults/broker_outage.py --away-s 600 --rate 30`` prints one JSON object; exit code 1 if one is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from sink_parts import TIMEOUT_S, Broker, inspection, wait_until

from rdedge.events import Event
from rdedge.sinks.mqtt import MqttSink, stop_loop


class Consumer:
    """A subscriber whom the broker remembers; counts how often each id came, in the order of arrival."""

    def __init__(self, port: int, topic: str = "#"):
        self.ids: Counter[str] = Counter()
        self.messages: list[tuple[str, bytes]] = []
        self.first_at_s: dict[str, float] = {}
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="consumer", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(TIMEOUT_S)

    def _take(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload))
        if message.topic.endswith(("/verdict", "/alarm")):
            record_id = json.loads(message.payload)["id"]
            self.ids[record_id] += 1
            self.first_at_s.setdefault(record_id, time.monotonic())

    def wait_for(self, ids: Iterable[str], timeout_s: float = TIMEOUT_S) -> None:
        """Until all of these came, or the time is over."""
        until_s = time.monotonic() + timeout_s
        missing = set(ids) - self.ids.keys()
        while missing and time.monotonic() < until_s:
            time.sleep(0.02)
            missing -= self.ids.keys()

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        stop_loop(self._client)


def run(folder: Path, *, away_s: float, rate: float, lead_s: float) -> dict[str, object]:
    """``rate`` verdicts a second for ``lead_s`` with the broker, ``away_s`` without, ``lead_s`` with it again."""
    broker = Broker(folder)
    broker.start()
    consumer = Consumer(broker.port)
    events: list[Event] = []
    sink = MqttSink(
        host="127.0.0.1", port=broker.port, session="s", camera="top", spool=folder / "spool", on_event=events.append
    )
    write_ms: list[float] = []
    index = 0

    def line(duration_s: float) -> None:
        nonlocal index
        started_s, first = time.monotonic(), index
        while (due_s := (index - first) / rate) < duration_s:
            time.sleep(max(0.0, started_s + due_s - time.monotonic()))
            seen = inspection(index, is_anomalous=index % 10 == 0, size_hw=(64, 64))
            before = time.perf_counter()
            sink.write(seen)
            write_ms.append((time.perf_counter() - before) * 1e3)
            index += 1

    try:
        line(lead_s)
        wait_until(lambda: sink.outbox.waiting == 0)
        broker.stop()
        line(away_s)
        waiting = sink.outbox.waiting
        spool_bytes = sum(path.stat().st_size for path in (folder / "spool").iterdir())
        last_waiting = index - 1
        broker.start()
        back_s = time.monotonic()
        line(lead_s)
        expected = {f"s/top/{i}" for i in range(index)}
        consumer.wait_for(expected)
        sink.close()
    finally:
        broker.stop()
        consumer.close()
    order = [json.loads(body)["index"] for topic, body in consumer.messages if topic.endswith("/verdict")]
    return {
        "written": index,
        "waiting_when_it_came_back": waiting,
        "spool_bytes": spool_bytes,
        "arrived": len(consumer.ids),
        "missing": len(expected - consumer.ids.keys()),
        "unknown": len(consumer.ids.keys() - expected),
        "repeated": sum(consumer.ids.values()) - len(consumer.ids),
        "in_order": list(dict.fromkeys(order)) == sorted(set(order)),
        "caught_up_s": round(consumer.first_at_s[f"s/top/{last_waiting}"] - back_s, 2),
        "write_ms_p50_p99_max": [round(float(np.percentile(write_ms, q)), 3) for q in (50, 99, 100)],
        "events": [event.kind for event in events],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--away-s", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--lead-s", type=float, default=5.0)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), away_s=args.away_s, rate=args.rate, lead_s=args.lead_s)
    print(json.dumps(result, indent=1))
    return 1 if result["missing"] or result["unknown"] else 0


if __name__ == "__main__":
    sys.exit(main())
