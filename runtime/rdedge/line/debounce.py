"""K of N: a part is rejected only if enough of its frames are anomalous, and is good only if enough were judged."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """The state of one part after a frame.

    ``part_id``: None on a camera that runs freely, where the part is the last ``of`` frames. ``frames``: judged so far.
    ``is_decided``: by this frame; of the frames of a part at most one does.
    """

    part_id: str | None
    is_reject: bool
    anomalous: int
    frames: int
    of: int
    is_decided: bool


class KOfN:
    """The rule of one camera."""

    def __init__(self, k: int, n: int):
        """1 <= k <= n."""
        self.k, self.n = k, n
        self._part_id: str | None = None
        self._frames = self._anomalous = 0  # of the part
        self._last: deque[bool] = deque(maxlen=n)  # of a camera that runs freely

    def add(self, part_id: str | None, is_anomalous: bool) -> tuple[PartVerdict, PartVerdict | None]:
        """A judged frame -> its part's state, and the part before it if that ended short of N frames, undecided.

        A part of more than N frames is rejected by K of all of them.
        """
        before = self.end() if part_id != self._part_id else None
        self._part_id = part_id
        self._last.append(is_anomalous)
        was_open = part_id is None or self._is_open()
        self._frames += 1
        self._anomalous += is_anomalous
        if part_id is None:
            self._frames, self._anomalous = len(self._last), sum(self._last)
        is_decided = part_id is None or (was_open and not self._is_open())
        return self._state(is_decided=is_decided, is_reject=self._anomalous >= self.k), before

    def end(self) -> PartVerdict | None:
        """The last part, if it has an id and ended short of N frames, undecided.

        Frames that were lost may have shown the defect: it is a reject where they could have brought it to K.
        """
        before = None
        if self._part_id is not None and self._is_open():
            could_be = self._anomalous + self.n - self._frames >= self.k
            before = self._state(is_decided=True, is_reject=could_be)
        self._part_id, self._frames, self._anomalous = None, 0, 0
        self._last.clear()
        return before

    def _is_open(self) -> bool:
        return self._anomalous < self.k and self._frames < self.n

    def _state(self, *, is_decided: bool, is_reject: bool) -> PartVerdict:
        return PartVerdict(
            part_id=self._part_id,
            is_reject=is_reject,
            anomalous=self._anomalous,
            frames=self._frames,
            of=self.n,
            is_decided=is_decided,
        )
