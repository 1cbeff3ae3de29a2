"""Inspections as JSON lines: one object a part."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from rdedge.errors import SinkError
from rdedge.events import Event, EventHandler
from rdedge.inspector import Inspection
from rdedge.sinks.held import HeldLines
from rdedge.sinks.lines import LineLog
from rdedge.sinks.record import inspection_record

_HELD_BYTES = 8 << 20  # some 20,000 verdicts


class JsonLinesSink:
    """Appends to ``x.jsonl``; at ``max_bytes`` that becomes ``x.000001.jsonl`` and so on, of which the newest stay.

    A killed process leaves whole lines, or a half one at the end that the next start cuts off; a power cut costs a
    second. Without ``on_event`` a full disk is a SinkError. With it (see HeldLines) a slow disk does not hold the line,
    and a full one is told once: the lines wait in memory (8 MB, then the oldest are lost and counted), and are tried
    again every second. One process writes a file at a time.
    """

    def __init__(
        self,
        path: Path,
        session: str,
        *,
        camera: str = "",
        max_bytes: int | None = None,
        keep_files: int = 10,
        on_event: EventHandler | None = None,
    ):
        """``session`` marks the lines of this run; ``max_bytes``: None: one file for ever.

        The folder takes at most ``(keep_files + 1) * max_bytes``.
        """
        self._path = path
        self._session = session
        self._camera = camera
        self._max_bytes = max_bytes
        self._keep_files = keep_files
        self._on_event = on_event
        self._log = LineLog()
        self._held = HeldLines(self._append, max_bytes=_HELD_BYTES, on_change=self._tell)
        self.lost = 0  # lines that neither disk nor memory could take

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        record = inspection_record(inspection, session=self._session, camera=self._camera)
        line = msgspec.json.encode(record) + b"\n"
        if self._on_event is not None:
            self.lost += len(self._held.put(line))
            return
        try:
            self._append(line)
        except OSError as exc:
            raise self._failed(exc) from exc

    def close(self) -> None:
        """See Sink.close. Raises SinkError for lines that still wait for the disk: they are lost now."""
        waiting = len(self._held.close())
        self.lost += waiting
        try:
            self._log.close()
        except OSError as exc:  # a network file system may only now say that it has no space
            raise self._failed(exc) from exc
        if waiting:
            raise SinkError(f"{self._path}: {waiting} lines were never written", remedy="free space on the disk")

    def _append(self, line: bytes) -> None:
        if not self._log.is_open:
            self._log.open(self._path)
        size_bytes = self._log.size_bytes
        if self._max_bytes is not None and size_bytes > 0 and size_bytes + len(line) > self._max_bytes:
            self._rotate()
        self._log.append(line)

    def _rotate(self) -> None:
        numbers = sorted(self._numbers())
        with suppress(FileNotFoundError):  # done by a try that failed in its second step
            self._path.rename(self._numbered(numbers[-1] + 1 if numbers else 1))
        self._log.open(self._path)
        for number in numbers[: max(0, len(numbers) + 1 - self._keep_files)]:
            self._numbered(number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        pattern = re.compile(rf"{re.escape(self._path.stem)}\.(\d{{6,}}){re.escape(self._path.suffix)}")
        matches = map(pattern.fullmatch, os.listdir(self._path.parent))
        return [int(match.group(1)) for match in matches if match is not None]

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{number:06d}{self._path.suffix}")

    def _tell(self, fault: OSError | None) -> None:
        assert self._on_event is not None
        if fault is None:
            kind, text = "disk-recovered", f"{self._path}: is written again; {self.lost} lines were lost so far"
            self._on_event(Event(kind=kind, severity="info", text=text, camera=self._camera))
        else:
            text = f"{self._failed(fault)}; lines wait in memory"
            self._on_event(Event(kind="disk-fault", severity="error", text=text, camera=self._camera))

    def _failed(self, fault: OSError) -> SinkError:
        return SinkError(
            f"{self._path}: cannot be written ({fault.strerror})", remedy="check the disk's space and permissions"
        )
