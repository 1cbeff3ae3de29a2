"""Frames on demand: ``trigger+CAMERA#from=udp:127.0.0.1:7000`` gives a frame for each trigger, with the part's name."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import Protocol, runtime_checkable

from rdedge.errors import CameraFault, ImageError, RdedgeError
from rdedge.frames import Frame
from rdedge.sources.base import Camera, SourceInfo
from rdedge.sources.trigger import Trigger, Triggers
from rdedge.sources.uri import Options

OPTIONS = ("from", "delay_ms", "max_lag_ms")
_WAKE_S = 0.2


@runtime_checkable
class SoftwareTriggered(Camera, Protocol):
    """A camera that can wait for ``fire``."""

    @property
    def is_software_triggered(self) -> bool:
        """Whether it does."""

    def fire(self) -> None:
        """Takes one frame now. Raises CameraFault."""


class FiredCamera:
    """A Camera that takes its picture when it is told to: exact to the camera's own delay."""

    def __init__(self, camera: SoftwareTriggered, triggers: Triggers, options: Options):
        self.name = camera.name
        self._camera, self._triggers = camera, triggers
        self._delay_s, self._max_lag_s = _times_s(options)
        self._is_closed = False

    @property
    def info(self) -> SourceInfo:
        """See Camera."""
        return replace(self._camera.info, is_triggered=True)

    def read(self) -> Frame | None:
        """See Camera. Raises ImageError for a part that has passed."""
        while not self._is_closed:
            trigger = _next(self._triggers)
            if trigger is not None:
                due_s = trigger.at_s + self._delay_s
                _check_lag(trigger, time.monotonic() - due_s, self._max_lag_s)
                time.sleep(max(0.0, due_s - time.monotonic()))
                self._camera.fire()
                frame = self._camera.read()
                return None if frame is None else replace(frame, part_id=trigger.part_id)
            if self._triggers.has_ended:
                return None
        return None

    def close(self) -> None:
        """See Camera."""
        self._is_closed = True
        self._camera.close()


class PickedCamera:
    """A Camera that runs freely and gives, for each trigger, the first frame after it: exact to a frame time.

    The frame's own clock counts where it has one; else its arrival, and a network camera shows the moment before by its
    delay.
    """

    def __init__(self, camera: Camera, triggers: Triggers, options: Options):
        self.name = camera.name
        self._camera, self._triggers = camera, triggers
        self._delay_s, self._max_lag_s = _times_s(options)
        self._recent: deque[Frame] = deque(maxlen=4)
        self._error: RdedgeError | None = None
        self._error_at_s = 0.0
        self._has_ended = self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._drain, name="rdedge-trigger-camera", daemon=True)
        self._thread.start()

    @property
    def info(self) -> SourceInfo:
        """See Camera."""
        return replace(self._camera.info, is_triggered=True)

    def read(self) -> Frame | None:
        """See Camera. Raises ImageError for a part that was not caught, CameraFault also between two triggers."""
        while not (self._is_closed or self._has_ended):
            if isinstance(self._error, CameraFault):
                raise self._error
            trigger = _next(self._triggers)
            if trigger is not None:
                return self._picked(trigger)
            if self._triggers.has_ended:
                return None
        return None

    def close(self) -> None:
        """See Camera."""
        self._is_closed = True
        self._camera.close()
        with self._changed:
            self._changed.notify_all()

    def _picked(self, trigger: Trigger) -> Frame | None:
        due_s = trigger.at_s + self._delay_s
        timeout_s = max(0.0, due_s - time.monotonic()) + self._max_lag_s
        with self._changed:
            self._changed.wait_for(
                lambda: self._first_after(due_s) or self._error_after(due_s) or self._is_closed, timeout_s
            )
            frame, error = self._first_after(due_s), self._error_after(due_s)
        if frame is None and error is not None:
            raise ImageError(f"part {trigger.part_id} was not caught ({error.problem})", remedy=error.remedy)
        _check_lag(trigger, (time.monotonic() if frame is None else _taken_s(frame)) - due_s, self._max_lag_s)
        return None if frame is None else replace(frame, part_id=trigger.part_id)

    def _first_after(self, due_s: float) -> Frame | None:
        return next((frame for frame in self._recent if _taken_s(frame) >= due_s), None)

    def _error_after(self, due_s: float) -> RdedgeError | None:
        """A damaged frame from before is no matter of this part; a camera that is gone is."""
        return self._error if self._error_at_s >= due_s or isinstance(self._error, CameraFault) else None

    def _drain(self) -> None:
        while not self._is_closed:
            try:
                frame, error = self._camera.read(), None
            except RdedgeError as exc:
                frame, error = None, exc
            with self._changed:
                if error is not None:
                    self._error, self._error_at_s = error, time.monotonic()
                if frame is not None:
                    self._recent.append(frame)
                self._has_ended = frame is None and error is None
                self._changed.notify_all()
            if self._has_ended or isinstance(error, CameraFault):
                return


def _next(triggers: Triggers) -> Trigger | None:
    """The next trigger, or None after a short wait. Raises ImageError once for those that nobody could take."""
    if overflow := triggers.overflow():
        raise ImageError(
            f"{overflow} parts were not caught: too many triggers waited", remedy="see the camera's faults"
        )
    return triggers.next(_WAKE_S)


def _taken_s(frame: Frame) -> float:
    return frame.captured_at_s if frame.device_timestamp_s is None else frame.device_timestamp_s


def _check_lag(trigger: Trigger, lag_s: float, max_lag_s: float) -> None:
    """Raises ImageError where the part is no longer before the camera."""
    if lag_s > max_lag_s:
        raise ImageError(
            f"part {trigger.part_id} was not caught: {lag_s * 1e3:.0f} ms after its trigger there was no frame of it",
            remedy="slow the line down, or raise max_lag_ms if the part stands still",
        )


def _times_s(options: Options) -> tuple[float, float]:
    """(delay, greatest lag) in seconds."""
    return (options.number("delay_ms") or 0.0) / 1e3, (options.number("max_lag_ms") or 200.0) / 1e3
