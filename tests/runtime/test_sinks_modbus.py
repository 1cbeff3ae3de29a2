"""Modbus TCP with a real server in the PLC's place: what its registers say, and never an old "good"."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from free_port import free_port
from pymodbus.client import ModbusTcpClient
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.register_message import WriteMultipleRegistersRequest
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from sink_parts import TIMEOUT_S, Clock, inspection, wait_until

from rdedge.errors import MissingExtraError, UsageError
from rdedge.events import Event
from rdedge.inspector import Inspection
from rdedge.sinks.modbus import ModbusSink

ADDRESS = 100


class Plc:
    """A pymodbus server with registers 90..119 of device 3; keeps every write it gets."""

    def __init__(self, port: int):
        self.port = port
        self.writes: list[list[int]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    async def _serve(self) -> None:
        device = SimDevice(id=3, simdata=[SimData(90, values=[7] * 30, datatype=DataType.REGISTERS)])
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port), trace_pdu=self._note)
        await self._server.serve_forever(background=True)
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stopped.wait()
        await self._server.shutdown()

    def _note(self, is_sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        if isinstance(pdu, WriteMultipleRegistersRequest) and not is_sending and pdu.address == ADDRESS:
            self.writes.append(list(pdu.registers))
        return pdu

    def start(self) -> Plc:
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(TIMEOUT_S)

    def registers(self) -> list[int]:
        """As the PLC's own program, or an engineer's tool, reads them."""
        with ModbusTcpClient("127.0.0.1", port=self.port) as client:
            return list(client.read_holding_registers(ADDRESS - 1, count=10, device_id=3).registers)


MakeSink = Callable[..., ModbusSink]


@pytest.fixture
def plc() -> Iterator[Plc]:
    plc = Plc(free_port()).start()
    yield plc
    plc.stop()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rdedge.sinks.modbus.time", clock)
    return clock


@pytest.fixture
def make(events: list[Event]) -> Iterator[MakeSink]:
    opened: list[ModbusSink] = []

    def open_sink(port: int, **options: object) -> ModbusSink:
        plain = {"camera": "top", "device_id": 3, "address": ADDRESS, "heartbeat_s": 0.02, "hold_s": 1000.0}
        opened.append(ModbusSink(host="127.0.0.1", port=port, on_event=events.append, **plain | options))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()
    wait_until(lambda: not any(thread.name == "rdedge-modbus" for thread in threading.enumerate()))


def scored(score: float, threshold: float = 0.5) -> Inspection:
    seen = inspection(is_anomalous=score > threshold)
    return replace(seen, verdict=replace(seen.verdict, score=score, threshold=threshold))


def write_and_wait(sink: ModbusSink, plc: Plc, *inspections: Inspection) -> list[int]:
    """The registers after the last of these, without the heartbeat."""
    for seen in inspections:
        sink.write(seen)
    before = len(plc.writes)
    wait_until(lambda: len(plc.writes) >= before + 2)
    return plc.writes[-1][1:]


def test_the_registers_tell_counters_verdict_score_and_regions(plc: Plc, make: MakeSink) -> None:
    sink = make(plc.port)
    wait_until(lambda: bool(plc.writes))
    assert plc.writes[0][1:] == [0, 0, 0, 0, 0, 0, 0], "no verdict before the first part"
    assert write_and_wait(sink, plc, scored(0.25)) == [0, 1, 0, 0, 1, 500, 0]
    assert write_and_wait(sink, plc, scored(0.75)) == [0, 2, 0, 1, 2, 1500, 1]
    assert write_and_wait(sink, plc, *[scored(0.75)] * 3, scored(0.5)) == [0, 6, 0, 4, 1, 1000, 0]
    registers = plc.registers()
    assert (registers[0], registers[-1]) == (7, 7), "its neighbours are left alone"
    assert registers[2:9] == [0, 6, 0, 4, 1, 1000, 0]


@pytest.mark.parametrize(
    ("score", "threshold", "register"),
    [(100.0, 0.5, 65535), (-1.0, 0.5, 0), (0.0, 0.0, 0), (0.3, 0.0, 65535), (0.3, -1.0, 65535)],
)
def test_any_score_fits_its_register(plc: Plc, make: MakeSink, score: float, threshold: float, register: int) -> None:
    assert write_and_wait(make(plc.port), plc, scored(score, threshold))[5] == register


def test_counters_go_on_beyond_sixteen_bits(plc: Plc, make: MakeSink) -> None:
    sink = make(plc.port)
    assert write_and_wait(sink, plc, *[scored(0.75)] * 65_537)[:4] == [1, 1, 1, 1]


def test_the_heartbeat_goes_on_without_parts_and_wraps(plc: Plc, make: MakeSink) -> None:
    sink = make(plc.port, heartbeat_s=0.001)
    sink._heartbeat = 65_530
    wait_until(lambda: len(plc.writes) > 20 and plc.writes[-1][0] < 1000)
    beats = [write[0] for write in plc.writes]
    start = next(i for i, beat in enumerate(beats) if beat > 60_000)
    assert beats[start:] == [(beats[start] + i) % 65_536 for i in range(len(beats) - start)]


def test_a_verdict_grows_old(plc: Plc, make: MakeSink, clock: Clock) -> None:
    sink = make(plc.port, hold_s=1000.0)
    assert write_and_wait(sink, plc, scored(0.25))[4] == 1
    clock.ahead_s = 500.0
    assert write_and_wait(sink, plc)[4] == 1
    clock.ahead_s = 1000.0
    wait_until(lambda: plc.writes[-1][5] == 0)
    assert plc.writes[-1][1:5] == [0, 1, 0, 0], "the counters stay"


def test_closing_leaves_no_verdict(plc: Plc, make: MakeSink) -> None:
    sink = make(plc.port)
    assert write_and_wait(sink, plc, scored(0.25))[4] == 1
    sink.close()
    assert plc.registers()[6] == 0


def test_a_plc_that_comes_back_finds_no_old_good(make: MakeSink, events: list[Event], clock: Clock) -> None:
    plc = Plc(free_port()).start()
    sink = make(plc.port, hold_s=1000.0)
    write_and_wait(sink, plc, scored(0.25))
    plc.stop()
    wait_until(lambda: bool(events) and events[-1].kind == "sink-away")
    for _ in range(5):
        sink.write(scored(0.25))
    clock.ahead_s = 1000.0
    again = Plc(plc.port).start()
    try:
        wait_until(lambda: bool(again.writes))
        assert again.writes[0][1:6] == [0, 6, 0, 0, 0], "counted, but too old to pass"
        wait_until(lambda: events[-1].kind == "sink-back")
        assert write_and_wait(sink, again, scored(0.75))[:5] == [0, 7, 0, 1, 2]
    finally:
        sink.close()
        again.stop()


def test_a_plc_that_refuses_is_told(plc: Plc, make: MakeSink, events: list[Event]) -> None:
    make(plc.port, address=2000)
    wait_until(lambda: bool(events))
    assert events[0].kind == "sink-away" and "the PLC refuses" in events[0].text


def test_verdicts_do_not_wait_for_an_absent_plc(make: MakeSink, events: list[Event]) -> None:
    sink = make(free_port())
    for _ in range(1000):
        sink.write(scored(0.25))
    wait_until(lambda: [event.kind for event in events] == ["sink-away"])
    assert "nobody answers there" in events[0].text


@pytest.mark.parametrize("options", [{"address": -1}, {"address": 65_529}, {"device_id": 256}], ids=str)
def test_registers_that_cannot_be_are_refused(make: MakeSink, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"Modbus register -?\d+ of device \d+; use 0..65528 and 0..255"):
        make(1, **options)


def test_without_pymodbus_the_extra_is_named(make: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus.client", None)
    with pytest.raises(MissingExtraError, match=r"Modbus needs pymodbus .*; pip install 'rdedge\[modbus\]'"):
        make(1)
