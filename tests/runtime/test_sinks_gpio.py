"""GPIO without a board: real gpiod up to the call of the kernel, a strict stand-in of its line request beyond it.

What a pin then does is shown on the kernel's gpio-sim by benchmarks/booted_board.py; few kernels have one. The stand-in
refuses any call that the installed gpiod's LineRequest would refuse, and keeps what was set when.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpiod
import pytest
from gpiod.line import Direction, Value
from sink_parts import Clock, inspection, wait_until

from rdedge.errors import MissingExtraError, SinkError, UsageError
from rdedge.events import Event
from rdedge.sinks.gpio import GpioSink


class Pins:
    """Stands in for the kernel: what gpiod.request_lines was asked for, and each level with its time."""

    def __init__(self) -> None:
        self.settings: dict[Any, gpiod.LineSettings | None] = {}
        self.chip = self.consumer = ""
        self.levels: list[tuple[float, int | str, Value]] = []
        self.fault: OSError | None = None
        self.faults = 0
        self.takes_s = 0.0
        self.is_released = False

    def request_lines(self, *arguments: Any, **named: Any) -> Pins:
        bound = self._signature.bind(*arguments, **named).arguments
        self.chip, self.settings, self.consumer = bound["path"], bound["config"], bound["consumer"]
        return self

    _signature = inspect.signature(gpiod.request_lines)

    def set_value(self, line: int | str, value: Value) -> None:
        assert not self.is_released and isinstance(value, Value)
        assert any(line in lines for lines in self.settings)
        if self.fault is not None:
            self.faults += 1
            raise self.fault
        if value is ON:
            time.sleep(self.takes_s)
        self.levels.append((time.monotonic(), line, value))

    def release(self) -> None:
        self.is_released = True

    def of(self, line: int | str) -> list[Value]:
        return [value for _, at_line, value in self.levels if at_line == line]


MakeSink = Callable[..., GpioSink]
ON, OFF = Value.ACTIVE, Value.INACTIVE


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Pins:
    for name in ("set_value", "release"):
        ours = list(inspect.signature(getattr(Pins, name)).parameters)
        assert ours == list(inspect.signature(getattr(gpiod.LineRequest, name)).parameters)
    pins = Pins()
    monkeypatch.setattr(gpiod, "request_lines", pins.request_lines)
    return pins


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(events: list[Event]) -> Iterator[MakeSink]:
    opened: list[GpioSink] = []

    def open_sink(**options: Any) -> GpioSink:
        plain = {"chip": "/dev/gpiochip0", "line": 17, "camera": "top", "on_event": events.append, "pulse_s": 0.05}
        opened.append(GpioSink(**plain | options))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()
    wait_until(lambda: not any(thread.name == "rdedge-gpio" for thread in threading.enumerate()))


@pytest.mark.parametrize("active_low", [False, True])
def test_lines_are_outputs_and_inactive_from_the_start(pins: Pins, make: MakeSink, active_low: bool) -> None:
    make(active_low=active_low, heartbeat_line="BEAT")
    ((lines, settings),) = pins.settings.items()
    assert (pins.chip, pins.consumer, lines) == ("/dev/gpiochip0", "rdedge", (17, "BEAT"))
    assert settings is not None
    assert (settings.direction, settings.output_value, settings.active_low) == (Direction.OUTPUT, OFF, active_low)


def test_a_reject_is_one_pulse_of_its_length(pins: Pins, make: MakeSink) -> None:
    sink = make(pulse_s=0.2)
    sink.write(inspection(is_anomalous=False))
    sink.write(inspection())
    wait_until(lambda: pins.of(17)[-2:] == [ON, OFF])
    assert pins.of(17) in ([OFF, ON, OFF], [ON, OFF])
    (_, start_s), (_, end_s) = ((value, at_s) for at_s, _, value in pins.levels[-2:])
    assert end_s - start_s >= 0.2


def test_a_pulse_lasts_its_length_from_when_the_pin_is_active(pins: Pins, make: MakeSink) -> None:
    pins.takes_s = 0.1
    make(pulse_s=0.2).write(inspection())
    wait_until(lambda: pins.of(17)[-2:] == [ON, OFF])
    (start_s, _, _), (end_s, _, _) = pins.levels[-2:]
    assert end_s - start_s >= 0.2


def test_a_reject_within_the_pulse_prolongs_it(pins: Pins, make: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("rdedge.sinks.gpio.time", clock)
    monkeypatch.setattr("rdedge.sinks.gpio._HEARTBEAT_S", 0.01)

    def wait_for_beats() -> None:
        """The sink looks at the clock at every beat."""
        beats = len(pins.of("BEAT"))
        wait_until(lambda: len(pins.of("BEAT")) >= beats + 2)

    sink = make(pulse_s=1000.0, heartbeat_line="BEAT")
    sink.write(inspection())
    wait_until(lambda: ON in pins.of(17))
    wait_for_beats()
    clock.ahead_s = 600.0
    sink.write(inspection())
    wait_for_beats()
    clock.ahead_s = 1400.0
    wait_for_beats()
    assert pins.of(17)[-1] == ON
    clock.ahead_s = 2000.0
    wait_until(lambda: pins.of(17)[-1] == OFF)
    assert pins.of(17).count(ON) == 1


def test_each_reject_has_its_pulse(pins: Pins, make: MakeSink) -> None:
    sink = make(pulse_s=0.01)
    for count in range(1, 4):
        sink.write(inspection())
        wait_until(lambda count=count: pins.of(17).count(ON) == count and pins.of(17)[-1] == OFF)


def test_good_parts_can_be_pulsed_instead(pins: Pins, make: MakeSink) -> None:
    sink = make(on="good")
    sink.write(inspection())
    sink.write(inspection(is_anomalous=False))
    wait_until(lambda: pins.of(17)[-2:] == [ON, OFF])
    assert pins.of(17).count(ON) == 1


def test_closing_ends_the_pulse_in_order_and_releases(pins: Pins, make: MakeSink) -> None:
    sink = make(pulse_s=0.3, heartbeat_line=4)
    sink.write(inspection())
    sink.close()
    sink.close()
    times = {value: at_s for at_s, line, value in pins.levels if line == 17}
    assert times[OFF] - times[ON] >= 0.3 and pins.is_released
    assert pins.of(4)[-1] == OFF


def test_the_heartbeat_changes_as_long_as_the_line_lives(pins: Pins, make: MakeSink) -> None:
    make(heartbeat_line="BEAT")
    wait_until(lambda: len(pins.of("BEAT")) >= 4)
    beats = pins.of("BEAT")
    assert all(before != after for before, after in pairwise(beats))


def test_a_pin_that_cannot_be_set_is_told_once_and_tried_again(pins: Pins, make: MakeSink, events: list[Event]) -> None:
    sink = make(pulse_s=0.02)
    wait_until(lambda: bool(pins.levels))
    pins.fault = OSError(5, "Input/output error")
    for _ in range(3):
        faults = pins.faults
        sink.write(inspection())
        wait_until(lambda faults=faults: pins.faults > faults)
    wait_until(lambda: bool(events))
    assert [(event.kind, event.severity) for event in events] == [("sink-away", "error")]
    assert "/dev/gpiochip0, line 17 cannot be set (Input/output error)" in events[0].text
    pins.fault = None
    sink.write(inspection())
    wait_until(lambda: pins.of(17)[-2:] == [ON, OFF])
    assert [event.kind for event in events] == ["sink-away", "sink-back"]


@pytest.mark.parametrize("chip", ["/dev/gpiochip99", "/dev/null", "chip"])
def test_a_machine_without_such_a_line_says_so(make: MakeSink, chip: str, tmp_path: Path) -> None:
    """Real gpiod, real kernel."""
    path = str(tmp_path / "chip") if chip == "chip" else chip
    Path(tmp_path / "chip").write_bytes(b"")
    with pytest.raises(SinkError, match=r".*, lines \[17\]: .*; see `gpiodetect` and `gpioinfo`"):
        make(chip=path)


def test_a_pulse_of_no_length_is_refused(make: MakeSink) -> None:
    with pytest.raises(UsageError, match=r"a pulse of 0 s; use some milliseconds at least"):
        make(pulse_s=0)


def test_without_gpiod_the_extra_is_named(make: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(MissingExtraError, match=r"GPIO needs gpiod .*; pip install 'rdedge\[gpio\]'"):
        make()
