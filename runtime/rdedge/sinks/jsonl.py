"""Inspections as JSON lines: one object a part, each written before the next is judged."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import msgspec

from rdedge.errors import SinkError
from rdedge.inspector import Inspection
from rdedge.text import printable


class JsonLinesSink:
    """Appends to a file, so that a restarted line loses nothing."""

    def __init__(self, path: Path, session: str):
        """``session`` marks the lines of this run."""
        self._path = path
        self._session = session
        self._file: FileIO | None = None  # unbuffered: what was not written must not come again on closing

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        line = msgspec.json.encode(as_record(inspection) | {"session": self._session}) + b"\n"
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = FileIO(self._path, "a")
                if _ends_in_half_a_line(self._path, self._file):
                    self._file.write(b"\n")
            written = self._file.write(line)
        except OSError as exc:
            raise self._failed(exc.strerror) from exc
        if written != len(line):
            raise self._failed(f"only {written} of {len(line)} bytes, the disk is full")

    def close(self) -> None:
        """See Sink.close."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as exc:  # a network file system may only now say that it has no space
                raise self._failed(exc.strerror) from exc
            finally:
                self._file = None

    def _failed(self, reason: str | None) -> SinkError:
        return SinkError(f"{self._path}: cannot be written ({reason})", remedy="check the disk's space and permissions")


def _ends_in_half_a_line(path: Path, appending: FileIO) -> bool:
    """A process killed in the middle of a write leaves half a line; ours must not be glued to it."""
    if appending.tell() == 0:
        return False
    with path.open("rb") as existing:
        existing.seek(-1, 2)
        return existing.read(1) != b"\n"


def as_record(inspection: Inspection) -> dict[str, object]:
    """One inspection as plain JSON values."""
    frame, verdict, times = inspection.frame, inspection.verdict, inspection.times
    return {
        "source": printable(frame.source),
        "index": frame.index,
        "captured_at_s": frame.captured_at_s,
        "verdict": "anomalous" if verdict.is_anomalous else "good",
        "score": verdict.score,
        "threshold": verdict.threshold,
        "regions": [{"box_xywh": r.box_xywh, "area_px": r.area_px, "peak": r.peak} for r in verdict.regions],
        "preprocess_ms": round(times.preprocess_ms, 3),
        "infer_ms": round(times.infer_ms, 3),
        "judge_ms": round(times.judge_ms, 3),
    }
