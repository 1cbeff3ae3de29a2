"""A camera's sinks from their tables: opened, changed one by one, and closed; and events reach those who listen."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rdedge.errors import RdedgeError, SinkError
from rdedge.events import Event
from rdedge.line.announcer import Announcer
from rdedge.line.config import Gpio, JsonLines, Modbus, Mqtt, Pictures, Sinks, Tls, Webhook
from rdedge.line.outlets import Outlets
from rdedge.line.together import at_once

Inspect = Callable[..., None]


@pytest.fixture
def outlets(tmp_path: Path, events: list[Event]) -> Iterator[Outlets]:
    secrets = {"secret": "0123456789abcdef", None: None}
    opened = Outlets(
        "top",
        session="s",
        folder=tmp_path / "out",
        roi_xywh=None,
        file=lambda name: tmp_path / name,
        secret=secrets.__getitem__,
        drain_s=0.2,
        on_event=events.append,
    )
    yield opened
    opened.close()


@pytest.fixture
def port() -> int:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def names(outlets: Outlets) -> tuple[list[str], list[str]]:
    return [type(sink).__name__ for sink in outlets.sinks], [type(sink).__name__ for sink in outlets.actuators]


def test_every_kind_opens_by_its_table(outlets: Outlets, port: int, tmp_path: Path) -> None:
    outlets.set(
        Sinks(
            jsonl=JsonLines(),
            pictures=Pictures(),
            mqtt=Mqtt(host="127.0.0.1", port=port, username="u", password_file="secret", tls=Tls()),
            webhook=Webhook(url=f"https://127.0.0.1:{port}/x", secret_file="secret", tls=Tls()),
            modbus=Modbus(host="127.0.0.1", port=port),
        )
    )
    assert names(outlets) == (["JsonLinesSink", "DetachedSink", "MqttSink", "WebhookSink"], ["ModbusSink"])
    assert len(outlets.listeners) == 2, "broker and server hear alarms"
    assert (tmp_path / "out/spool-mqtt").is_dir() and (tmp_path / "out/spool-webhook").is_dir()


def test_only_what_changed_is_opened_anew(outlets: Outlets) -> None:
    outlets.set(Sinks(jsonl=JsonLines(), pictures=Pictures()))
    jsonl, pictures = outlets.sinks
    outlets.set(Sinks(jsonl=JsonLines(), pictures=Pictures(max_mb=5)))
    assert outlets.sinks[0] is jsonl and outlets.sinks[1] is not pictures
    outlets.set(Sinks(pictures=Pictures(max_mb=5)))
    assert names(outlets) == (["DetachedSink"], [])


@pytest.mark.parametrize(
    "bad",
    [Sinks(jsonl=JsonLines(max_mb=7), gpio=Gpio(chip="/dev/null", line=1)), Sinks(mqtt=Mqtt(host="h", topic="#"))],
)
def test_what_cannot_be_opened_leaves_what_was(outlets: Outlets, bad: Sinks) -> None:
    before = Sinks(jsonl=JsonLines(), pictures=Pictures())
    outlets.set(before)
    with pytest.raises(RdedgeError):
        outlets.set(bad)
    assert names(outlets) == (["JsonLinesSink", "DetachedSink"], [])


def test_tls_files_that_are_none_are_refused(outlets: Outlets, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(RdedgeError, match=r"ca\.pem"):
        outlets.set(Sinks(mqtt=Mqtt(host="127.0.0.1", tls=Tls(ca_file="ca.pem"))))


def test_a_fault_on_closing_is_told(outlets: Outlets, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    outlets.set(Sinks(jsonl=JsonLines()))

    def fail() -> None:
        raise SinkError("the disk is gone", remedy="look for it")

    monkeypatch.setattr(outlets.sinks[0], "close", fail)
    outlets.close()
    assert [(event.kind, event.camera) for event in events] == [("sink-fault", "top")]


def test_events_reach_their_camera_and_who_hears_all(capfd: pytest.CaptureFixture[str]) -> None:
    announcer = Announcer()
    heard: dict[str, list[str]] = {"": [], "top": [], "side": []}
    for camera, kinds in heard.items():
        announcer.set_listeners(camera, [lambda event, kinds=kinds: kinds.append(event.kind)])  # type: ignore[misc]
    for kind, camera in (("silent", "top"), ("black", "side"), ("config", "")):
        announcer(Event(kind=kind, severity="error", text=f"it is {kind}", camera=camera))
    assert heard == {"": ["silent", "black", "config"], "top": ["silent", "config"], "side": ["black", "config"]}
    assert announcer.counts == {("top", "silent"): 1, ("side", "black"): 1, ("", "config"): 1}
    assert capfd.readouterr().err.splitlines() == [
        "rdedge: error: top: it is silent",
        "rdedge: error: side: it is black",
        "rdedge: error: it is config",
    ]


def test_all_are_attempted_and_the_first_fault_is_raised() -> None:
    done = []

    def fail() -> None:
        raise SinkError("no", remedy="yes")

    with pytest.raises(SinkError):
        at_once([fail, lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2]
