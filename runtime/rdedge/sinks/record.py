"""What a verdict and an alarm are as JSON, wherever they are sent: to files, brokers, servers and the page."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from datetime import datetime, timedelta, timezone

from rdedge.events import Event
from rdedge.inspector import Inspection
from rdedge.text import printable


def new_session() -> str:
    """A name for one run of the line: when it began, and chance.

    Boards without a battery begin every day at the same time, and a restart may take less than a second.
    """
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def inspection_record(inspection: Inspection, *, session: str, camera: str) -> dict[str, object]:
    """One inspection as plain JSON values.

    ``id`` is unique as long as ``session`` is (``new_session``) and a camera numbers its frames through: whoever gets a
    record twice drops the second. ``captured_at_utc`` is ``captured_at_s``, which is monotonic, told by today's wall
    clock; between two sinks it may differ by a millisecond. ``verdict`` is the part's so far where a K-of-N
    rule judges parts by several frames, and ``part`` says by which; else it is the frame's. Lengths are pixels of the
    source picture.
    """
    frame, verdict, times, part = inspection.frame, inspection.verdict, inspection.times, inspection.part
    return {
        "id": f"{session}/{camera}/{frame.index}",
        "session": session,
        "camera": camera,
        "part_id": None if frame.part_id is None else printable(frame.part_id),
        "source": printable(frame.source),
        "index": frame.index,
        "captured_at_s": frame.captured_at_s,
        "captured_at_utc": _in_utc(frame.captured_at_s),
        "verdict": "anomalous" if verdict.is_anomalous else "good",
        "score": verdict.score,
        "threshold": verdict.threshold,
        "regions": [{"box_xywh": r.box_xywh, "area_px": r.area_px, "peak": r.peak} for r in verdict.regions],
        "part": None if part is None else asdict(part),
        "preprocess_ms": round(times.preprocess_ms, 3),
        "infer_ms": round(times.infer_ms, 3),
        "judge_ms": round(times.judge_ms, 3),
    }


def event_record(event: Event, *, session: str) -> dict[str, object]:
    """One event as plain JSON values, with an id of its own."""
    return {
        "id": f"{session}/{event.camera}/event/{secrets.token_hex(8)}",
        "session": session,
        "camera": event.camera,
        "kind": event.kind,
        "severity": event.severity,
        "text": printable(event.text),
        "ends": list(event.ends),
        "at_s": event.at_s,
        "at_utc": event.at_utc.isoformat(timespec="milliseconds"),
    }


def _in_utc(at_s: float) -> str:
    at = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - at_s)
    return at.isoformat(timespec="milliseconds")
