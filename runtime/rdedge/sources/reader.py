"""One connection to a camera, opened and read in a thread of its own: a driver that hangs holds nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rdedge.errors import ImageError
from rdedge.frames import Frame
from rdedge.sources.base import Camera, SourceInfo

_JOIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What one read gave, and how long the camera took for it. None: the camera will give no more."""

    item: Frame | ImageError | None
    waited_s: float


class Reader:
    """Hands over one item at a time: while its taker is busy, the camera waits (and drops, as its driver does)."""

    def __init__(self, open_camera: Callable[[], Camera]):
        self._open_camera = open_camera
        self._camera: Camera | None = None
        self._taken: Taken | None = None
        self._error: BaseException | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="rdedge-camera", daemon=True)
        self._thread.start()

    @property
    def info(self) -> SourceInfo:
        """Of the camera; empty before it is open."""
        camera = self._camera
        return SourceInfo() if camera is None else camera.info

    @property
    def is_running(self) -> bool:
        """Whether the thread lives; after ``stop``, the driver still hangs."""
        return self._thread.is_alive()

    def take(self, timeout_s: float) -> Taken | None:
        """The next item; None when it did not come in time. Raises what the camera raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken or self._error or self._stopping, timeout_s)
            taken, self._taken = self._taken, None
            self._changed.notify_all()
            if taken is None and self._error is not None:
                raise self._error
            return taken

    def stop(self) -> None:
        """Ends the connection; a camera that does not let go keeps its (daemon) thread, see ``is_running``."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        camera = self._camera
        if camera is not None and self._thread.is_alive():
            closer = threading.Thread(target=camera.close, name="rdedge-camera-close", daemon=True)
            closer.start()
            closer.join(_JOIN_S)
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            self._camera = camera = self._open_camera()
            try:
                while self._give(camera):
                    pass
            finally:
                camera.close()
        except BaseException as exc:  # handed to the taker, who raises it
            with self._changed:
                self._error = exc
                self._changed.notify_all()

    def _give(self, camera: Camera) -> bool:
        """One item handed over; False when there is nothing more to do."""
        started_s = time.monotonic()
        item: Frame | ImageError | None
        try:
            item = camera.read() if not self._stopping else None
        except ImageError as exc:
            item = exc
        waited_s = time.monotonic() - started_s
        with self._changed:
            self._changed.wait_for(lambda: self._taken is None or self._stopping)
            if not self._stopping:
                self._taken = Taken(item, waited_s)
                self._changed.notify_all()
            return not self._stopping and item is not None
