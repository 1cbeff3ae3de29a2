"""MQTT with a real mosquitto: what arrives, who is let in, and what a broker sees of a line that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broker_outage import Consumer
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from sink_parts import TIMEOUT_S, Broker, inspection, wait_until

from rdedge.errors import MissingExtraError, UsageError
from rdedge.events import Event
from rdedge.sinks.mqtt import MqttSink, stop_loop
from rdedge.sinks.tls import client_context

MakeSink = Callable[..., MqttSink]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def consumer(broker: Broker) -> Iterator[Consumer]:
    consumer = Consumer(broker.port)
    yield consumer
    consumer.close()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, events: list[Event]) -> Iterator[MakeSink]:
    opened: list[MqttSink] = []

    def open_sink(port: int, **options: object) -> MqttSink:
        plain = {"host": "127.0.0.1", "session": "s", "camera": "top", "on_event": events.append, "drain_s": 0.5}
        opened.append(MqttSink(port=port, spool=tmp_path / "spool", **plain | options))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()
    wait_until(lambda: not any("rdedge" in thread.name for thread in threading.enumerate()))


def of_topic(consumer: Consumer, topic: str) -> list[bytes]:
    return [body for name, body in consumer.messages if name == topic]


def test_verdicts_alarms_and_status_have_their_topics(broker: Broker, consumer: Consumer, make: MakeSink) -> None:
    sink = make(broker.port, topic="plant/7")
    sink.write(inspection(1, part_id="P-1"))
    sink.event(Event(kind="silent", severity="error", text="no frame", camera="top"))
    sink.write(inspection(2, is_anomalous=False))
    wait_until(lambda: len(consumer.ids) == 3)
    sink.close()
    wait_until(lambda: len(of_topic(consumer, "plant/7/top/status")) == 2)
    records = [json.loads(body) for body in of_topic(consumer, "plant/7/top/verdict")]
    assert [(r["id"], r["verdict"], r["part_id"]) for r in records] == [
        ("s/top/1", "anomalous", "P-1"),
        ("s/top/2", "good", None),
    ]
    assert [json.loads(body)["kind"] for body in of_topic(consumer, "plant/7/top/alarm")] == ["silent"]
    assert of_topic(consumer, "plant/7/top/status") == [b"online", b"offline"]


def test_the_status_is_retained_for_whoever_asks_later(broker: Broker, make: MakeSink) -> None:
    sink = make(broker.port)
    wait_until(lambda: not sink._trouble)
    for expected in (b"online", b"offline"):
        late = Consumer(broker.port, "rdedge/top/status")
        wait_until(lambda late=late: bool(late.messages))
        late.close()
        assert {body for _, body in late.messages} == {expected}
        sink.close()


LINE = """
import sys, time
from pathlib import Path
from rdedge.sinks.mqtt import MqttSink
port, spool = int(sys.argv[1]), Path(sys.argv[2])
sink = MqttSink(host="127.0.0.1", port=port, session="s", camera="top", spool=spool, on_event=print)
time.sleep(1000)
"""


def test_a_killed_line_is_told_by_its_last_will(broker: Broker, consumer: Consumer, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LINE, str(broker.port), str(tmp_path / "spool")]) as line:
        wait_until(lambda: of_topic(consumer, "rdedge/top/status") == [b"online"])
        line.kill()
    wait_until(lambda: of_topic(consumer, "rdedge/top/status") == [b"online", b"offline"])


def test_a_broker_that_comes_later_gets_everything(tmp_path: Path, make: MakeSink, events: list[Event]) -> None:
    broker = Broker(tmp_path)
    broker.start()
    consumer = Consumer(broker.port)
    broker.stop()
    sink = make(broker.port)
    wait_until(lambda: "nobody" in sink._trouble)
    for index in range(200):
        sink.write(inspection(index, size_hw=(16, 16)))
    wait_until(lambda: [event.kind for event in events] == ["sink-away"])
    assert f"mqtt://127.0.0.1:{broker.port}: nobody answers there" in events[0].text
    broker.start()
    try:
        wait_until(lambda: len(consumer.ids) == 200)
        assert set(consumer.ids) == {f"s/top/{i}" for i in range(200)}
        wait_until(lambda: [event.kind for event in events] == ["sink-away", "sink-back"])
    finally:
        sink.close()
        consumer.close()
        broker.stop()


def test_a_broker_that_hangs_delays_neither_verdict_nor_end(broker: Broker, consumer: Consumer, make: MakeSink) -> None:
    sink = make(broker.port)
    sink.write(inspection(0))
    wait_until(lambda: len(consumer.ids) == 1)
    wait_until(lambda: sink.outbox.waiting == 0)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        for index in range(1, 500):
            sink.write(inspection(index, size_hw=(16, 16)))
        started_s = time.monotonic()
        sink.close()
        assert time.monotonic() - started_s < TIMEOUT_S
        assert sink.outbox.waiting == 499
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    wait_until(lambda: not any("rdedge" in thread.name for thread in threading.enumerate()))
    again = make(broker.port)
    wait_until(lambda: len(consumer.ids) == 500)
    assert set(consumer.ids) == {f"s/top/{i}" for i in range(500)}
    again.close()


def test_who_is_not_let_in_is_told_why(tmp_path: Path, make: MakeSink, events: list[Event]) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line", "right"], check=True)
    broker = Broker(tmp_path, extra=f"allow_anonymous false\npassword_file {passwords}")
    broker.start()
    try:
        sink = make(broker.port, username="line", password="wrong")
        sink.write(inspection(1))
        wait_until(lambda: bool(events))
        wait_until(lambda: "ot authori" in sink._trouble)
        sink.close()
        sink = make(broker.port, username="line", password="right")
        wait_until(lambda: sink.outbox.counts.delivered == 1)
    finally:
        broker.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a refused socket to Python
def test_tls_is_verified(tmp_path: Path, make: MakeSink, events: list[Event]) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    broker = Broker(tmp_path, extra=f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}")
    broker.start()
    try:
        sink = make(broker.port, tls=client_context())
        sink.write(inspection(1))
        wait_until(lambda: [event.kind for event in events] == ["sink-away"])
        sink.close()
        assert sink.outbox.waiting == 1, "a certificate nobody vouches for"
        sink = make(broker.port, tls=client_context(ca_file=certificate))
        wait_until(lambda: sink.outbox.counts.delivered == 1)
    finally:
        broker.stop()


def make_certificate(certificate: Path, key: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=line -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


@pytest.mark.parametrize("names", [{"topic": "a/#"}, {"camera": "a+b"}, {"camera": ""}, {"topic": ""}], ids=str)
def test_a_topic_that_is_none_is_refused(make: MakeSink, tmp_path: Path, names: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"MQTT topic .*; name topic and camera, without # and \+"):
        make(1, **names)
    assert not (tmp_path / "spool").exists()


def test_without_paho_the_extra_is_named(make: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(MissingExtraError, match=r"MQTT needs paho .*; pip install 'rdedge\[mqtt\]'"):
        make(1)


def test_a_thread_that_ends_while_it_is_being_ended_is_no_error() -> None:
    class Raced(paho.Client):
        """Its thread is there when it is first looked at, and gone the next time."""

        reads = 0

        def __getattribute__(self, name: str) -> object:
            if name == "_thread":
                self.reads += 1
                return threading.current_thread if self.reads == 1 else None
            return super().__getattribute__(name)

    with pytest.raises(AttributeError, match="join"):
        Raced(CallbackAPIVersion.VERSION2).loop_stop()
    stop_loop(Raced(CallbackAPIVersion.VERSION2))
