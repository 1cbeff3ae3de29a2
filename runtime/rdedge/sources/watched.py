"""A camera as the line needs it: every fault is recognised, told once, retried with back-off, and got over.

Frames that are no pictures of a part (black, saturated, frozen, resized, damaged) are withheld: they get no verdict.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from rdedge.errors import CameraFault, ImageError, SourceError, UsageError
from rdedge.events import Event, EventHandler, Severity, tell
from rdedge.frames import Frame
from rdedge.sources.base import Camera, SourceInfo
from rdedge.sources.health import Pace, PictureCheck, PictureFault, WatchLimits
from rdedge.sources.reader import Reader, Taken

_POLL_S = 0.2  # how soon a triggered camera's wait notices that it is closed
_STUCK_S = 5.0
_REFUSED = ("credentials", "misconfigured")  # to try again at once would lock an account, and help nobody
_LIGHT = ("black", "saturated")  # opening the camera again does not mend the light, and would miss its return
# In which order a frame is looked at: what is found wrong with it says that what was looked at before is well, and
# nothing of the rest. A camera that gives frames at all is neither silent nor unplugged.
_LOOKED_AT = {"bad-frame": 1, "black": 2, "saturated": 2, "frozen": 3, "resized": 4}
_ALL_WELL = 5


class WatchedSource:
    """A FrameSource over a camera that may fail; it ends only when it is closed or the camera says it is done."""

    def __init__(
        self,
        name: str,
        open_camera: Callable[[], Camera],
        *,
        camera: str = "",
        on_event: EventHandler = tell,
        limits: WatchLimits | None = None,
        on_close: Callable[[], None] | None = None,
    ):
        """``name``: the address without its password; ``camera``: its name in events, else the address."""
        self.name = name
        self.skipped: list[ImageError] = []
        self._open_camera = open_camera
        self._camera_name = camera or name
        self._on_event = on_event
        self._on_close = on_close
        self._limits = limits or WatchLimits()
        self._check = PictureCheck(self._limits)
        self._closed = threading.Event()
        self._reader: Reader | None = None
        self._last_info = SourceInfo()
        self._faults: dict[str, float] = {}  # kinds told and not yet over, and since when
        self._free_frames: dict[str, int] = {}  # of these kinds: frames since that were free of them
        self._delivered = self._withheld = self._restarts = self._lost_before = 0
        self._failures_in_a_row = 0
        self._bad_since_s: float | None = None

    @property
    def info(self) -> SourceInfo:
        """See FrameSource."""
        reader = self._reader
        info = self._last_info if reader is None else reader.info
        return replace(
            info,
            lost=self._lost_before + (0 if reader is None else info.lost),
            withheld=self._withheld,
            restarts=self._restarts,
            faults=tuple(self._faults),
        )

    def __iter__(self) -> Iterator[Frame]:
        """Frames, numbered over all connections. Raises UsageError and MissingExtraError, which waiting cannot mend."""
        while not self._closed.is_set():
            self._reader = reader = Reader(self._open_camera)
            try:
                yield from self._frames_of(reader)
                return
            except SourceError as exc:
                self._fail(exc.kind if isinstance(exc, CameraFault) else "unplugged", exc)
            except UsageError as exc:
                if self._delivered == 0:
                    raise
                self._fail("misconfigured", exc)  # a camera was exchanged while we run
            finally:
                reader.stop()
                self._last_info = reader.info
                self._lost_before += self._last_info.lost
                self._reader = None
            self._back_off(reader)

    def close(self) -> None:
        """See FrameSource.close."""
        self._closed.set()
        reader = self._reader
        if reader is not None:
            reader.stop()
        if self._on_close is not None:
            self._on_close()

    def _frames_of(self, reader: Reader) -> Iterator[Frame]:
        """The pictures of one connection; returns at the end. Raises CameraFault when it should be opened anew."""
        pace: Pace | None = None
        while (taken := self._take(reader, pace)) is not None and taken.item is not None:
            if pace is None:
                pace = Pace(reader.info.fps, self._limits.slow_factor)
            elif not reader.info.is_triggered:
                pace.add(taken.waited_s)
                self._report_pace(pace)
            fault = self._fault_of(taken.item)
            if fault is not None:
                self._withhold(fault, taken.item, is_part=reader.info.is_triggered)
            elif isinstance(taken.item, Frame):
                self._bad_since_s = None
                self._failures_in_a_row = 0
                self._settle(None)
                self._delivered += 1
                yield replace(taken.item, index=self._delivered - 1)

    def _take(self, reader: Reader, pace: Pace | None) -> Taken | None:
        """The next item; None once closed. Raises CameraFault when it is overdue; a trigger may take its time."""
        limits = self._limits
        patience_s = limits.first_frame_s
        if pace is not None:
            patience_s = max(limits.silent_s, limits.silent_intervals * pace.interval_s)
        started_s = time.monotonic()
        while not self._closed.is_set():
            taken = reader.take(min(_POLL_S, patience_s))
            if taken is not None:
                return taken
            waited_s = time.monotonic() - started_s
            if waited_s >= patience_s and not reader.info.is_triggered:
                raise CameraFault("silent", f"no frame for {waited_s:.1f} s", remedy="check its power and cable")
        return None

    def _fault_of(self, item: Frame | ImageError) -> PictureFault | None:
        if isinstance(item, ImageError):
            return PictureFault("bad-frame", item.problem)
        return self._check.fault_of(item)

    def _withhold(self, fault: PictureFault, item: Frame | ImageError, *, is_part: bool) -> None:
        """Counts and tells; raises CameraFault where this has lasted and opening the camera again may mend it."""
        self._withheld += 1
        self._settle(fault.kind)
        if fault.is_certain:
            self._report(fault.kind, fault.text, "warning" if fault.kind == "bad-frame" else "error")
        if is_part:  # each part counts, so each is told
            which = f"part {item.part_id}" if isinstance(item, Frame) else "a part"
            self._tell("part-lost", f"{which} gets no verdict: {fault.text}", "error")
        now_s = time.monotonic()
        if self._bad_since_s is None:
            self._bad_since_s = now_s
        if now_s - self._bad_since_s >= self._limits.reopen_s and fault.kind not in _LIGHT:
            self._bad_since_s = None
            raise CameraFault(fault.kind, fault.text, remedy="it is opened again")

    def _settle(self, shown: str | None) -> None:
        """A frame that shows this fault, or none; enough that are free of a fault end it, whatever else they show.

        Slowness is not seen in a frame.
        """
        looked_at = _ALL_WELL if shown is None else _LOOKED_AT[shown]
        for kind in self._faults:
            if kind == shown:
                self._free_frames[kind] = 0
            elif _LOOKED_AT.get(kind, 0) < looked_at or (kind in _LIGHT and shown in _LIGHT):
                self._free_frames[kind] = self._free_frames.get(kind, 0) + 1
        enough = self._limits.settle_frames
        self._end_faults([k for k in self._faults if k != "slow" and self._free_frames.get(k, 0) >= enough])

    def _report_pace(self, pace: Pace) -> None:
        if pace.is_slow and pace.promised_s is not None:
            text = f"{1 / pace.interval_s:.1f} frames/s instead of {1 / pace.promised_s:.1f}"
            self._report("slow", text, "warning")
        elif "slow" in self._faults:
            self._end_faults(["slow"])

    def _fail(self, kind: str, error: SourceError | UsageError) -> None:
        self._free_frames.clear()
        self._failures_in_a_row += 1
        self._report(kind, str(error), "error")

    def _back_off(self, reader: Reader) -> None:
        """Waits before the next attempt, and for a driver that still holds the last one: never two at a time."""
        limits = self._limits
        wait_s = min(limits.retry_cap_s, limits.retry_s * 2.0 ** min(self._failures_in_a_row - 1, 30))
        if any(kind in self._faults for kind in _REFUSED):
            wait_s = limits.refused_retry_s
        self._closed.wait(wait_s * random.uniform(0.8, 1.2))
        since_s = time.monotonic()
        while reader.is_running and not self._closed.wait(_POLL_S):
            if time.monotonic() - since_s > _STUCK_S:
                self._report("stuck", "its driver does not let go of the last connection", "error")
        self._restarts += 1

    def _report(self, kind: str, text: str, severity: Severity) -> None:
        """Once, until it is over."""
        if kind not in self._faults:
            self._free_frames[kind] = 0
            self._faults = {**self._faults, kind: time.monotonic()}
            self._tell(kind, text, severity)

    def _end_faults(self, kinds: list[str]) -> None:
        if kinds:
            since_s = min(self._faults[kind] for kind in kinds)
            self._faults = {kind: at_s for kind, at_s in self._faults.items() if kind not in kinds}
            lasted_s = time.monotonic() - since_s
            still = f"; still {', '.join(self._faults)}" if self._faults else ""
            text = f"well again after {lasted_s:.1f} s ({', '.join(kinds)}){still}"
            self._tell("recovered", text, "info", tuple(kinds))

    def _tell(self, kind: str, text: str, severity: Severity, ends: tuple[str, ...] = ()) -> None:
        self._on_event(Event(kind=kind, severity=severity, text=text, camera=self._camera_name, ends=ends))
