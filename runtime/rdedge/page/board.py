"""What the operator page knows of one camera: newest part, counts, last scores and rejects; cheap to feed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median
from typing import NamedTuple

from rdedge.inspector import Inspection

HISTORY = 1000  # frames whose scores are kept
REJECTS = 12  # rejects that are kept with their picture
_HOLD_S = 1.0  # a reject stays on show at least so long, however fast the line is
_REFRESH_S = 0.1  # another good part is shown at most so often
_WAITING_FRAMES = 3  # rejects that may hold their camera frame until it is encoded
_CYCLE_PARTS = 21
_STALE_CYCLES = 4
_STALE_S = (2.0, 300.0)  # bounds of the age from which a verdict is old
_STALE_FIRST_S = 10.0  # the same while there is no second part to tell the cycle by


@dataclass(frozen=True, slots=True)
class Part:
    """One judged part; ``number`` counts the camera's parts from 1, ``at_s`` is on ``time.monotonic``."""

    number: int
    inspection: Inspection
    at_s: float


@dataclass(slots=True)
class _Reject:
    """``part`` holds the camera's frame only until ``picture`` is there (or others took its place)."""

    number: int
    label: str
    score: float
    at_s: float
    part: Part | None
    picture: bytes | None = None


Seen = dict[str, int]  # camera -> number of the last frame whose score was sent


class News(NamedTuple):
    """``state``: plain JSON values; ``key``: changes when there is something new to show; ``seen``: after this."""

    state: dict[str, object]
    key: object
    seen: Seen


Encode = Callable[[Inspection], bytes]


class CameraBoard:
    """Fed by the line, read by the page's threads.

    ``write`` stores references and counts under a lock that nobody holds for long. Pictures are encoded by whoever asks
    first for the part on show, and by ``encode_rejects`` for rejects.
    """

    def __init__(self, name: str, encode: Encode):
        self.name = name
        self.encode = encode
        self._lock = threading.Lock()
        self._encoding = threading.Lock()
        self._since_s = time.monotonic()
        self._parts = 0
        self._rejected = 0
        self._frames = 0
        self._history: deque[tuple[float, bool, float]] = deque(maxlen=HISTORY)
        self._times_s: deque[float] = deque(maxlen=_CYCLE_PARTS)
        self._rejects: deque[_Reject] = deque(maxlen=REJECTS)
        self._newest: Part | None = None
        self._newest_reject: Part | None = None
        self._shown: Part | None = None
        self._shown_since_s = 0.0
        self._encoded: tuple[int, bytes] | None = None

    def write(self, inspection: Inspection) -> None:
        """Take one judged frame; of a part judged by several frames, the one that decides is shown and counted."""
        verdict, part, at_s = inspection.verdict, inspection.part, time.monotonic()
        is_above = verdict.is_anomalous if part is None else verdict.score > verdict.threshold
        with self._lock:
            self._frames += 1
            self._history.append((verdict.score, is_above, inspection.times.total_ms))
            if part is not None and not part.is_decided:
                return
            self._parts += 1
            self._times_s.append(at_s)
            self._newest = newest = Part(self._parts, inspection, at_s)
            if verdict.is_anomalous:
                self._rejected += 1
                self._newest_reject = newest
                self._rejects.append(_Reject(newest.number, label_of(inspection), verdict.score, at_s, newest))
                if len(self._rejects) > _WAITING_FRAMES:
                    self._rejects[-1 - _WAITING_FRAMES].part = None  # rejects come faster than pictures

    def news(self, since: int) -> News:
        """The camera as plain JSON values, with the scores of frames after number ``since``.

        All times are ages in seconds, so that the reader's clock does not matter.
        """
        with self._lock:
            shown, now_s = self._pick(), time.monotonic()
            parts, rejected, newest = self._parts, self._rejected, self._newest
            frames, times_s = self._frames, list(self._times_s)
            fresh = min(frames - since, len(self._history))
            scores = list(islice(self._history, len(self._history) - fresh, None))
            rejects = [_listed(reject, now_s) for reject in reversed(self._rejects)]
        cycle_s = median(later - earlier for earlier, later in pairwise(times_s)) if len(times_s) > 1 else None
        state: dict[str, object] = {
            "name": self.name,
            "parts": parts,
            "rejected": rejected,
            "running_s": now_s - self._since_s,
            "age_s": None if newest is None else now_s - newest.at_s,
            "cycle_s": cycle_s,
            "is_k_of_n": newest is not None and newest.inspection.part is not None,
            "stale_after_s": _stale_after_s(cycle_s),
            "threshold": None if newest is None else newest.inspection.verdict.threshold,
            "shown": None if shown is None else _facts(shown, now_s),
            "scores": [(score, is_above, round(ms, 2)) for score, is_above, ms in scores],
            "rejects": rejects,
        }
        key = (frames, None if shown is None else shown.number, tuple(reject["picture"] for reject in rejects))
        return News(state, key, {self.name: frames})

    def live(self) -> tuple[int, bytes] | None:
        """Number and encoded picture of the part on show; None before the first part."""
        with self._lock:
            part = self._pick()
        return None if part is None else (part.number, self._picture_of(part))

    def picture(self, number: int) -> bytes | None:
        """The encoded picture of one of the last rejects; None if it has none, and for any other part."""
        with self._lock:
            reject = next((reject for reject in self._rejects if reject.number == number), None)
            part = None if reject is None else reject.part
            kept = None if reject is None else reject.picture
        return kept if part is None else self._picture_of(part)

    def encode_rejects(self) -> None:
        """Encode the pictures of rejects that have none yet, and let go of their frames (also of one that fails)."""
        while True:
            with self._lock:
                part = next((r.part for r in self._rejects if r.part is not None), None)
            if part is None:
                return
            picture = None
            try:
                picture = self._picture_of(part)
            finally:
                with self._lock:
                    for reject in self._rejects:
                        if reject.number == part.number:
                            reject.part, reject.picture = None, picture

    def _pick(self) -> Part | None:
        """The part on show: a reject for a moment at least, otherwise the newest, changed 10 times a second at most."""
        now_s, held = time.monotonic(), self._newest_reject
        if held is not None and now_s - held.at_s >= _HOLD_S:
            held = self._newest_reject = None
        part = held or self._newest
        if part is not self._shown and (part is held or now_s - self._shown_since_s >= _REFRESH_S):
            self._shown, self._shown_since_s = part, now_s
        return self._shown

    def _picture_of(self, part: Part) -> bytes:
        """Encoded once, whoever asks; the last one is kept for the next who asks."""
        with self._encoding:
            if self._encoded is None or self._encoded[0] != part.number:
                self._encoded = (part.number, self.encode(part.inspection))
            return self._encoded[1]


def _listed(reject: _Reject, now_s: float) -> dict[str, object]:
    is_coming = reject.part is not None
    return {
        "number": reject.number,
        "label": reject.label,
        "score": reject.score,
        "age_s": now_s - reject.at_s,
        "picture": "ready" if reject.picture is not None else "coming" if is_coming else "none",
    }


def _stale_after_s(cycle_s: float | None) -> float:
    if cycle_s is None:
        return _STALE_FIRST_S
    return min(max(_STALE_CYCLES * cycle_s, _STALE_S[0]), _STALE_S[1])


def label_of(inspection: Inspection) -> str:
    """What people call the part: its own name where a trigger gave one, otherwise its frame's number."""
    return inspection.frame.part_id or f"{inspection.frame.index}"


def _facts(part: Part, now_s: float) -> dict[str, object]:
    verdict = part.inspection.verdict
    return {
        "number": part.number,
        "label": label_of(part.inspection),
        "is_anomalous": verdict.is_anomalous,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "age_s": now_s - part.at_s,
    }
