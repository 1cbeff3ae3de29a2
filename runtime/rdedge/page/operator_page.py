"""The operator page as the line sees it: feed it verdicts and events; it never makes the line wait."""

from __future__ import annotations

import threading
from functools import partial

from rdedge.errors import UsageError
from rdedge.events import Event, EventHandler
from rdedge.inspector import Inspection
from rdedge.page.board import CameraBoard, News, Seen
from rdedge.page.events import EventBoard
from rdedge.page.guard import Guard
from rdedge.page.pictures import encode_part
from rdedge.page.server import PageServer, resolved

DEFAULT_PORT = 8360
_JOIN_S = 5.0


class OperatorPage:
    """Serves the page from threads of its own until closed.

    ``write``, ``event`` and ``sink`` may be called from any thread. Nothing on the page changes the line.
    """

    def __init__(
        self,
        bind: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        token: str | None = None,
        *,
        session: str,
        report: EventHandler | None = None,
    ):
        """``bind``: an address or name of this machine; ``port``: 0 takes a free one; ``session``: as in the records.

        ``report`` hears of the page's own faults (default: they are shown on the page). Raises UsageError if the
        address cannot be bound, or may be seen by others and there is no token of 16 characters.
        """
        family, address = resolved(bind, port)
        guard = Guard(address[0], port, token)
        self._session = session
        self._boards: dict[str, CameraBoard] = {}
        self._boards_lock = threading.Lock()
        self._events = EventBoard()
        self._report = report or self.event
        self._encode_now = threading.Event()
        self._stopping = False
        try:
            self._server = PageServer(address, family, guard, self)
        except OSError as exc:
            raise UsageError(
                f"the operator page cannot be opened at {bind} port {port} ({exc.strerror})",
                remedy="end what uses the port, or name another one",
            ) from exc
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.1,), name="rdedge-page", daemon=True),
            threading.Thread(target=self._encode, name="rdedge-page-pictures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"

    def sink(self, camera: str, roi_xywh: tuple[int, int, int, int] | None = None) -> CameraSink:
        """A Sink for one camera's inspections; the camera has its tab from now on, and keeps its counts if it had one.

        ``roi_xywh``: what the anomaly map covers, in pixels of the frame; None: all of it.
        """
        encode = partial(encode_part, session=self._session, camera=camera, roi_xywh=roi_xywh)
        with self._boards_lock:
            board = self._boards.setdefault(camera, CameraBoard(camera, encode))
            board.encode = encode
        return CameraSink(board, self._encode_now)

    def event(self, event: Event) -> None:
        """Show an event."""
        self._events.add(event)

    def close(self) -> None:
        """End all connections and threads; may be called twice."""
        if self._stopping:
            return
        self._stopping = True
        self._encode_now.set()
        self._server.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def news(self, seen: Seen) -> News:
        """See rdedge.page.server.State."""
        cameras = [board.news(seen.get(board.name, 0)) for board in self._all()]
        events, events_key = self._events.news()
        return News(
            state={"cameras": [camera.state for camera in cameras]} | events,
            key=(events_key, *(camera.key for camera in cameras)),
            seen={name: number for camera in cameras for name, number in camera.seen.items()},
        )

    def picture(self, camera: int, number: int | None) -> tuple[int, bytes] | None:
        """See rdedge.page.server.State."""
        boards = self._all()
        if camera >= len(boards):
            return None
        if number is None:
            return boards[camera].live()
        data = boards[camera].picture(number)
        return None if data is None else (number, data)

    def fault(self, exc: Exception) -> None:
        """A page's thread failed: a fault of ours, which must not pass unseen and must not end the line."""
        what = f"{type(exc).__name__}: {exc}"
        self._report(Event(kind="page", severity="error", text=f"the operator page failed: {what}", camera=""))

    def _all(self) -> list[CameraBoard]:
        with self._boards_lock:
            return list(self._boards.values())

    def _encode(self) -> None:
        """Pictures of rejects, as they come."""
        while self._encode_now.wait() and not self._stopping:
            self._encode_now.clear()
            for board in self._all():
                try:
                    board.encode_rejects()
                except Exception as exc:
                    self.fault(exc)
                    self._encode_now.set()  # the failed one is dropped; the others are still to come


class CameraSink:
    """One camera's way to the page; a rdedge.sinks.Sink."""

    def __init__(self, board: CameraBoard, encode_now: threading.Event):
        self._board = board
        self._encode_now = encode_now

    def write(self, inspection: Inspection) -> None:
        """Store a reference; takes microseconds, does not raise."""
        self._board.write(inspection)
        if inspection.verdict.is_anomalous:
            self._encode_now.set()

    def close(self) -> None:
        """See Sink.close. The page keeps showing what it has until it is closed itself."""
