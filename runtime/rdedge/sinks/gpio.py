"""A pulse on a pin of the board for each reject, through libgpiod 2. The only module that imports gpiod."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

from rdedge.errors import MissingExtraError, SinkError, UsageError
from rdedge.events import Event, EventHandler, Severity
from rdedge.inspector import Inspection

if TYPE_CHECKING:
    from gpiod import LineRequest

_HEARTBEAT_S = 0.5


class GpioSink:
    """``line`` is active for ``pulse_s`` after each part of the verdict ``on``; one within the pulse prolongs it.

    ``heartbeat_line``, if named, changes its level every half second as long as this process lives, for a safety relay
    or a PLC input that must not take a dead line for one without rejects. It does not tell that parts are judged: where
    a part must not pass unjudged, pulse the good ones. Lines are inactive from the start and on closing; after a
    SIGKILL the kernel releases them, and their level is the board's.
    """

    def __init__(
        self,
        *,
        chip: str,
        line: int | str,
        camera: str,
        on_event: EventHandler,
        on: Literal["anomalous", "good"] = "anomalous",
        pulse_s: float = 0.1,
        active_low: bool = False,
        heartbeat_line: int | str | None = None,
    ):
        """``chip``: such as ``/dev/gpiochip0``; lines by number or name, as ``gpioinfo`` shows them.

        Raises MissingExtraError, UsageError, and SinkError if this machine has no such line, or another process has it.
        """
        if not pulse_s > 0:
            raise UsageError(f"a pulse of {pulse_s} s", remedy="use some milliseconds at least")
        self._name = f"{chip}, line {line}"
        self._line = line
        self._heartbeat_line = heartbeat_line
        self._camera = camera
        self._on_event = on_event
        self._on_anomalous = on == "anomalous"
        self._pulse_s = pulse_s
        self._is_wanted = False
        self._active_until_s = 0.0
        self._is_closing = False
        self._is_faulty = False
        self._changed = threading.Condition()
        lines = [line] if heartbeat_line is None else [line, heartbeat_line]
        self._request = _request(chip, lines, active_low)
        self._thread = threading.Thread(target=self._work, name="rdedge-gpio", daemon=True)
        self._thread.start()

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        if inspection.verdict.is_anomalous == self._on_anomalous:
            with self._changed:
                self._is_wanted = True
                self._changed.notify_all()

    def close(self) -> None:
        """See Sink.close; a pulse that runs is finished."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(self._pulse_s + 1.0)

    def _work(self) -> None:
        levels: dict[int | str, bool] = {}
        while True:
            with self._changed:
                now_s = time.monotonic()
                is_wanted, self._is_wanted = self._is_wanted, False
                is_active = is_wanted or now_s < self._active_until_s
                if self._is_closing and not is_active:
                    break
            wanted = {self._line: is_active}
            if self._heartbeat_line is not None:
                wanted[self._heartbeat_line] = int(now_s / _HEARTBEAT_S) % 2 == 1
            levels |= self._set({line: level for line, level in wanted.items() if levels.get(line) != level})
            if is_wanted:  # from when the pin is set, so that no pulse is shorter
                self._active_until_s = time.monotonic() + self._pulse_s
            self._wait(self._active_until_s if is_active else None)
        self._set(dict.fromkeys(levels, False))
        self._request.release()

    def _wait(self, until_s: float | None) -> None:
        """For a reject, the end of the pulse, the next beat or the end of the line."""
        now_s = time.monotonic()
        waits_s = [] if until_s is None else [until_s - now_s]
        if self._heartbeat_line is not None:
            waits_s.append(_HEARTBEAT_S - now_s % _HEARTBEAT_S)
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_wanted or (self._is_closing and until_s is None),
                max(0.0, min(waits_s)) if waits_s else None,
            )

    def _set(self, levels: dict[int | str, bool]) -> dict[int | str, bool]:
        """The levels that were set; a fault is told once."""
        from gpiod.line import Value

        try:
            for line, level in levels.items():
                self._request.set_value(line, Value.ACTIVE if level else Value.INACTIVE)
        except OSError as exc:
            if not self._is_faulty:
                self._is_faulty = True
                self._tell("sink-away", "error", f"cannot be set ({exc.strerror}); rejects are not pulsed")
            return {}
        if self._is_faulty and levels:
            self._is_faulty = False
            self._tell("sink-back", "info", "is set again")
        return levels

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        self._on_event(Event(kind=kind, severity=severity, text=f"{self._name} {text}", camera=self._camera))


def _request(chip: str, lines: list[int | str], active_low: bool) -> LineRequest:
    try:
        import gpiod
        from gpiod.line import Direction, Value
    except ImportError as exc:
        raise MissingExtraError(f"GPIO needs gpiod ({exc})", remedy="pip install 'rdedge[gpio]'") from exc
    output = gpiod.LineSettings(direction=Direction.OUTPUT, output_value=Value.INACTIVE, active_low=active_low)
    try:
        return gpiod.request_lines(chip, config={tuple(lines): output}, consumer="rdedge")
    except (OSError, ValueError) as exc:  # ValueError: no line of that name
        raise SinkError(
            f"{chip}, lines {lines}: {exc}", remedy="see `gpiodetect` and `gpioinfo`; the user may need the group gpio"
        ) from exc
