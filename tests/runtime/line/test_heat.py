"""A line on a board that gets hot: told once as it begins and once as it ends, in events and in metrics."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from free_port import free_port
from prometheus_client.parser import text_string_to_metric_families

from rdedge.board.thermal import read_heat
from rdedge.events import Event
from rdedge.line import heat as heat_module
from rdedge.line.announcer import Announcer
from rdedge.line.heat import HeatWatch
from rdedge.line.line import Line
from rdedge.line.metrics import render
from rdedge.line.plan import make_plan

THERMAL, HWMON = "sys/class/thermal", "sys/class/hwmon"


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(".new").write_text(f"{text}\n")
    path.with_name(".new").replace(path)  # a kernel's file is never half written


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """What an Orin's kernel shows, among it a sensor of a part that is off and a fan at work."""
    zones = {
        0: ("cpu-thermal", 51250),
        1: ("gpu-thermal", 48500),
        2: ("cv0-thermal", -256000),
        10: ("tj-thermal", 52000),
    }
    for number, (kind, millidegrees) in zones.items():
        write(tmp_path, f"{THERMAL}/thermal_zone{number}/type", kind)
        write(tmp_path, f"{THERMAL}/thermal_zone{number}/temp", millidegrees)
    (tmp_path / THERMAL / "thermal_zone3/temp").mkdir(parents=True)  # cannot be read at all
    devices = {
        0: ("pwm-fan", 3),
        1: ("cpu-throttle-alert", 0),
        2: ("gpu-throttle-alert", 0),
        3: ("hot-surface-alert", 1),
    }
    for number, (kind, state) in devices.items():
        write(tmp_path, f"{THERMAL}/cooling_device{number}/type", kind)
        write(tmp_path, f"{THERMAL}/cooling_device{number}/cur_state", state)
    write(tmp_path, f"{HWMON}/hwmon3/name", "soctherm_oc")
    for number in (1, 2, 3):
        write(tmp_path, f"{HWMON}/hwmon3/oc{number}_event_cnt", 15 if number == 3 else 0)
        write(tmp_path, f"{HWMON}/hwmon3/oc{number}_throt_en", 1)
    return tmp_path


def set_alert(root: Path, state: int) -> None:
    write(root, f"{THERMAL}/thermal_zone10/temp", 99500 if state else 52000)
    write(root, f"{THERMAL}/cooling_device2/cur_state", state)


@pytest.fixture
def told(board: Path) -> Iterator[tuple[HeatWatch, list[Event]]]:
    events: list[Event] = []
    watch = HeatWatch(events.append, root=board, every_s=0.01)
    yield watch, events
    watch.close()
    watch.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_only_what_slows_the_board_down_is_an_alert(board: Path) -> None:
    heat = read_heat(board)
    assert heat.temperatures_c == {"cpu": 51.25, "gpu": 48.5, "tj": 52.0}
    assert heat.alerts == {"cpu": False, "gpu": False} and heat.throttled == []
    assert heat.over_currents == {"under-voltage": 0, "average over-current": 0, "instantaneous over-current": 15}
    assert (heat.can_tell, heat.hottest) == (True, "tj 52 °C")


def test_throttling_is_told_as_it_begins_and_as_it_ends(board: Path, told: tuple[HeatWatch, list[Event]]) -> None:
    watch, events = told
    set_alert(board, 2)
    wait_for(lambda: events)
    wait_for(lambda: watch.heat is not None and watch.heat.throttled == ["gpu"])
    write(board, f"{THERMAL}/cooling_device1/cur_state", 1)  # another part: no news
    wait_for(lambda: watch.heat is not None and watch.heat.throttled == ["cpu", "gpu"])
    write(board, f"{THERMAL}/cooling_device1/cur_state", 0)
    set_alert(board, 0)
    wait_for(lambda: len(events) == 2)
    assert [(event.kind, event.severity, event.camera) for event in events] == [
        ("throttling", "warning", ""),
        ("throttling-over", "info", ""),
    ]
    assert events[0].text == "the board is too hot (tj 100 °C) and slows down: gpu; verdicts take longer"


def test_a_board_that_throttles_from_the_start_is_told_of(board: Path) -> None:
    set_alert(board, 1)
    events: list[Event] = []
    watch = HeatWatch(events.append, root=board, every_s=0.01)
    wait_for(lambda: events)
    watch.close()
    assert [event.kind for event in events] == ["throttling"]


def test_over_current_is_told_once_a_burst(
    board: Path, told: tuple[HeatWatch, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, events = told
    for count in (16, 40, 41):
        write(board, f"{HWMON}/hwmon3/oc3_event_cnt", count)
        wait_for(lambda count=count: watch.heat.over_currents["instantaneous over-current"] == count)
    wait_for(lambda: events)
    assert [event.kind for event in events] == ["over-current"] and "moments: instantaneous over-current" in events[
        0
    ].text
    monkeypatch.setattr(heat_module, "_CALM_S", 0.05)
    wait_for(lambda: len(events) == 2)
    assert (events[1].kind, events[1].severity) == ("over-current-over", "info")


def test_a_counter_that_cannot_be_read_for_a_moment_is_no_event(
    board: Path, told: tuple[HeatWatch, list[Event]]
) -> None:
    watch, events = told
    for count in ("", 15):
        write(board, f"{HWMON}/hwmon3/oc3_event_cnt", count)
        before = watch.heat
        wait_for(lambda before=before: watch.heat is not before)
        wait_for(lambda count=count: (len(watch.heat.over_currents) == 3) == (count == 15))
    assert events == []


def test_events_of_before_are_no_news(told: tuple[HeatWatch, list[Event]]) -> None:
    watch, events = told
    before = watch.heat
    wait_for(lambda: watch.heat is not before)
    assert events == []


def test_a_machine_that_cannot_tell_has_no_thread_and_no_metrics(tmp_path: Path) -> None:
    write(tmp_path, f"{THERMAL}/thermal_zone0/type", "x86_pkg_temp")
    write(tmp_path, f"{THERMAL}/thermal_zone0/temp", 71000)
    write(tmp_path, f"{THERMAL}/cooling_device0/type", "Processor")
    write(tmp_path, f"{THERMAL}/cooling_device0/cur_state", 3)
    watch = HeatWatch(lambda event: None, root=tmp_path)
    assert watch.heat is None and "rdedge_te" not in render([], Announcer(), 0.0, watch.heat)
    watch.close()


def test_metrics_of_a_hot_board(board: Path) -> None:
    set_alert(board, 1)
    families = text_string_to_metric_families(render([], Announcer(), 0.0, read_heat(board)))
    found = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples if s.labels}
    assert found == {
        ("rdedge_temperature_celsius", "cpu"): 51.25,
        ("rdedge_temperature_celsius", "gpu"): 48.5,
        ("rdedge_temperature_celsius", "tj"): 99.5,
        ("rdedge_throttled", "cpu"): 0.0,
        ("rdedge_throttled", "gpu"): 1.0,
        ("rdedge_over_current_total", "under-voltage"): 0.0,
        ("rdedge_over_current_total", "average over-current"): 0.0,
        ("rdedge_over_current_total", "instantaneous over-current"): 15.0,
    }


def test_a_line_says_it_and_shows_it(board: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_alert(board, 1)
    monkeypatch.setattr("rdedge.line.line.HeatWatch", lambda on_event: HeatWatch(on_event, root=board, every_s=0.01))
    text = 'out = "out"\nbundle = "bundle"\nbackend = "fake"\n[metrics]\nport = {}\n'
    text += '[[camera]]\nname = "top"\nuri = "folder:many"\npolicy = "every"\n'
    (site / "line.toml").write_text(text.format(free_port()))
    with Line(make_plan(site / "line.toml")) as line:
        wait_for(lambda: line.announcer.counts["", "throttling"] == 1)
        assert line.server is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{line.server.port}/metrics", timeout=30) as answer:
            assert 'rdedge_throttled{part="gpu"} 1.0' in answer.read().decode()
