"""The latest verdict in the registers of a PLC, over Modbus TCP. The only module that imports pymodbus."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdedge.errors import MissingExtraError, UsageError
from rdedge.events import Event, EventHandler, Severity
from rdedge.inspector import Inspection

if TYPE_CHECKING:
    from pymodbus.client import ModbusTcpClient

NO_VERDICT, GOOD, REJECT = 0, 1, 2
REGISTERS = 8
_FULL_SCORE = 0xFFFF
_TIMEOUT_S = 1.0
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Latest:
    """What the PLC should know; ``at_s``: when it was judged."""

    parts: int = 0
    rejects: int = 0
    verdict: int = NO_VERDICT
    score_permille: int = 0
    regions: int = 0
    at_s: float = 0.0


class ModbusSink:
    """Writes eight holding registers (function 16, so that the PLC sees them change together) from ``address`` on:

    ======  ==================================================================================================
    +0      heartbeat: grows by one with every write, at least every ``heartbeat_s``, and wraps at 65,536
    +1, +2  parts judged since the start, 32 bits, high word first
    +3, +4  rejects among them, likewise
    +5      verdict of the latest part: 0 none, 1 good, 2 reject
    +6      its score in thousandths of its threshold, at most 65,535
    +7      its anomalous regions
    ======  ==================================================================================================

    The latest value wins: what the PLC could not be told in time is not told later. So the ladder logic passes a part
    only if the part counter grew by exactly one and the verdict is 1, treats a larger step as as many unknown parts
    (rejects tells whether one was bad), and a heartbeat that stands still for 3 x ``heartbeat_s`` as a line that is
    down. A verdict older than ``hold_s`` is written as 0, as it is before the first part and on closing: a PLC that
    comes back never finds an old "good".
    """

    def __init__(
        self,
        *,
        host: str,
        camera: str,
        on_event: EventHandler,
        port: int = 502,
        device_id: int = 1,
        address: int = 0,
        heartbeat_s: float = 0.5,
        hold_s: float = 1.0,
    ):
        """``device_id``: 0..255; ``address``: of the first register, counted from 0 as in the protocol (PLC tools often
        say 40001 for it). Connects in the background. Raises MissingExtraError, UsageError.
        """
        if not 0 <= address <= 0x10000 - REGISTERS or not 0 <= device_id <= 255:
            raise UsageError(
                f"Modbus register {address} of device {device_id}",
                remedy=f"use 0..{0x10000 - REGISTERS} and 0..255",
            )
        self._name = f"modbus://{host}:{port}"
        self._camera = camera
        self._on_event = on_event
        self._device_id = device_id
        self._address = address
        self._heartbeat_s = heartbeat_s
        self._hold_s = hold_s
        self._client = _make_client(host, port)
        self._latest = _Latest()
        self._is_new = False
        self._is_closing = False
        self._is_away = False
        self._heartbeat = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="rdedge-modbus", daemon=True)
        self._thread.start()

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        verdict = inspection.verdict
        threshold = max(verdict.threshold, 1e-9)  # of 0: every anomalous score is far above
        with self._changed:
            self._latest = _Latest(
                parts=self._latest.parts + 1,
                rejects=self._latest.rejects + verdict.is_anomalous,
                verdict=REJECT if verdict.is_anomalous else GOOD,
                score_permille=round(min(max(verdict.score / threshold * 1000, 0), _FULL_SCORE)),
                regions=min(len(verdict.regions), _FULL_SCORE),
                at_s=time.monotonic(),
            )
            self._is_new = True
            self._changed.notify_all()

    def close(self) -> None:
        """See Sink.close; tells the PLC that there is no verdict any more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(3 * _TIMEOUT_S)

    def _work(self) -> None:
        pause_s = self._heartbeat_s
        while self._wait(pause_s):
            pause_s = self._heartbeat_s if self._send() else min(2 * pause_s, _LONGEST_PAUSE_S)
        self._send()
        self._client.close()  # type: ignore[no-untyped-call]

    def _wait(self, pause_s: float) -> bool:
        """Until there is something to tell, or the pause is over; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or (self._is_new and not self._is_away), pause_s)
            return not self._is_closing

    def _send(self) -> bool:
        from pymodbus.exceptions import ModbusException

        try:
            if not self._client.connect():  # type: ignore[no-untyped-call]
                return self._set_away("nobody answers there")
            answer = self._client.write_registers(self._address, self._registers(), device_id=self._device_id)
        except (OSError, ModbusException) as exc:
            return self._set_away(str(exc))
        if answer.isError():
            return self._set_away(f"the PLC refuses: {answer}")
        if self._is_away:
            self._is_away = False
            self._tell("sink-back", "info", "is back")
        return True

    def _registers(self) -> list[int]:
        with self._changed:
            latest, self._is_new = self._latest, False
            is_fresh = not self._is_closing and time.monotonic() - latest.at_s <= self._hold_s
        self._heartbeat = (self._heartbeat + 1) & 0xFFFF
        return [
            self._heartbeat,
            *divmod(latest.parts & 0xFFFFFFFF, 0x10000),
            *divmod(latest.rejects & 0xFFFFFFFF, 0x10000),
            latest.verdict if is_fresh else NO_VERDICT,
            latest.score_permille,
            latest.regions,
        ]

    def _set_away(self, reason: str) -> bool:
        self._client.close()  # type: ignore[no-untyped-call]
        if not self._is_away:
            self._is_away = True
            self._tell("sink-away", "error", f"is away ({reason}); its heartbeat stands still")
        return False

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        self._on_event(Event(kind=kind, severity=severity, text=f"{self._name}: {text}", camera=self._camera))


def _make_client(host: str, port: int) -> ModbusTcpClient:
    try:
        from pymodbus.client import ModbusTcpClient
    except ImportError as exc:
        raise MissingExtraError(f"Modbus needs pymodbus ({exc})", remedy="pip install 'rdedge[modbus]'") from exc
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # what it logs as errors is told as events
    return ModbusTcpClient(host, port=port, timeout=_TIMEOUT_S, retries=0)
