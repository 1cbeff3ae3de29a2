"""The operator page's HTTP server: fixed routes, GET only, bounded in connections, bytes and time."""

from __future__ import annotations

import io
import re
import socket
import socketserver
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Protocol

import msgspec

from rdedge.errors import UsageError
from rdedge.page.board import News, Seen
from rdedge.page.bounded import BoundedReader, TooLarge, unsent_bytes
from rdedge.page.files import LOGIN_FILES, PAGE_FILES, PAGE_VERSION, SECURITY_HEADERS, StaticFile
from rdedge.page.guard import Guard

MAX_CONNECTIONS = 32
MAX_STREAMS = 8
_SEND_S = 5.0  # to take an answer
_TICK_S = 0.05
_HEARTBEAT_S = 1.0
_SEND_BUFFER_BYTES = 65536
_PICTURE = re.compile(r"/picture/([0-9]{1,4})/([0-9]{1,15}|live)")
_ALSO = {HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"}, HTTPStatus.METHOD_NOT_ALLOWED: {"Allow": "GET"}}


class State(Protocol):
    """What the server asks of the page."""

    def news(self, seen: Seen) -> News:
        """The state, with the scores after ``seen``."""

    def picture(self, camera: int, number: int | None) -> tuple[int, bytes] | None:
        """Number and picture of a reject of the camera at this place, or of its part on show; None: not kept."""

    def fault(self, exc: Exception) -> None:
        """A request that failed by our fault."""


def resolved(bind: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The IP address that ``bind`` means on this machine. Raises UsageError."""
    try:
        if not 0 <= port <= 65535:
            raise OverflowError("ports end at 65535")
        found = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return family, (str(address[0]), int(address[1]))
    except (OSError, UnicodeError, OverflowError) as exc:
        raise UsageError(
            f"the operator page cannot be opened at {bind!r} port {port} ({exc})",
            remedy="name an address of this machine, such as 127.0.0.1:8360",
        ) from exc


class PageServer(socketserver.TCPServer):
    """A thread a connection, at most 32; one more is turned away."""

    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, guard: Guard, state: State):
        """Raises OSError if the address cannot be bound."""
        self.address_family = family
        self.guard = guard
        self.state = state
        self.stopping = threading.Event()
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve one connection in a thread of its own."""
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="rdedge-page-visitor", daemon=True
        )
        with self._lock:
            is_full = len(self._open) >= MAX_CONNECTIONS
            if not is_full:
                self._open[request] = thread
        if is_full:
            request.settimeout(0.0)
            with suppress(OSError):  # it need not hear it
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads; socketserver closes the connection
            self._forget(request)
            raise

    def _serve(self, request: socket.socket, client_address: object) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the visitor went away, or was too slow
        except Exception as exc:
            self.state.fault(exc)
        finally:
            self.shutdown_request(request)
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing on stderr: called where a thread could not be started; the visitor comes again."""

    def close(self) -> None:
        """Stop serving and end all connections."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            remaining = list(self._open.items())
        for request, _ in remaining:
            with suppress(OSError):  # it ended by itself
                request.shutdown(socket.SHUT_RDWR)
        for _, thread in remaining:
            thread.join(_SEND_S)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PageServer
    protocol_version = default_request_version = request_version = "HTTP/1.1"  # HTTP/0.9 answers have no status
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """See BaseHTTPRequestHandler."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        super().setup()
        self.rfile.close()
        self._reader = BoundedReader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 4096)

    def handle_one_request(self) -> None:
        """See BaseHTTPRequestHandler."""
        self._reader.begin()
        try:
            super().handle_one_request()
        except TooLarge:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def do_GET(self) -> None:
        """Answer one request."""
        guard, (path, _, query) = self.server.guard, self.path.partition("?")
        if (refusal := self._refusal()) is not None:
            self.send_error(refusal)
        elif path == "/" and guard.admits_query(query):
            self._send_file(LOGIN_FILES["welcome"], {"Set-Cookie": guard.cookie()})
        elif not guard.admits(self.headers):
            if path == "/":
                self._send_file(LOGIN_FILES["/"], _ALSO[HTTPStatus.UNAUTHORIZED], HTTPStatus.UNAUTHORIZED)
            elif path in LOGIN_FILES:
                self._send_file(LOGIN_FILES[path])
            else:
                self.send_error(HTTPStatus.UNAUTHORIZED)
        elif path == "/login":
            self._answer(HTTPStatus.OK, "text/plain", b"welcome\n", {"Set-Cookie": guard.cookie()})
        elif path in PAGE_FILES:
            self._send_file(PAGE_FILES[path])
        elif path == "/events":
            self._stream()
        elif (asked := _PICTURE.fullmatch(path)) is not None:
            self._send_picture(int(asked[1]), None if asked[2] == "live" else int(asked[2]))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _refuse_method(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _refusal(self) -> HTTPStatus | None:
        """Whether the request is one that no browser showing our page makes."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            return HTTPStatus.BAD_REQUEST
        if not self.server.guard.knows_host(hosts[0].strip()):
            return HTTPStatus.MISDIRECTED_REQUEST
        asked_from = self.headers.get("Sec-Fetch-Site", "none")  # told by browsers, not to be forged by pages in them
        if asked_from not in ("none", "same-origin") and self.path.partition("?")[0] != "/":
            return HTTPStatus.FORBIDDEN
        return None

    def _send_file(
        self, file: StaticFile, headers: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self._answer(status, file.content_type, file.data, headers)

    def _send_picture(self, camera: int, number: int | None) -> None:
        found = self.server.state.picture(camera, number)
        if found is None:
            self._answer(HTTPStatus.NO_CONTENT, "application/octet-stream", b"")
        else:
            self._answer(HTTPStatus.OK, "application/octet-stream", found[1], {"X-Part": f"{found[0]}"})

    def _stream(self) -> None:
        """Server-sent events: the state whenever it has changed, at most twenty times a second, and every second."""
        if not self.server.streams.acquire(blocking=False):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        try:
            self.close_connection = True
            self._send_head(HTTPStatus.OK, "text/event-stream", {"Connection": "close"})
            self.connection.settimeout(_SEND_S)
            self.end_headers()
            self._push()
        finally:
            self.server.streams.release()

    def _push(self) -> None:
        """A message waits until the one before has arrived, so that none is old when it does."""
        seen: Seen = {}
        key: object = None
        sent_s = time.monotonic()
        while not self.server.stopping.is_set():
            now_s = time.monotonic()
            if unsent_bytes(self.connection) == 0:
                news = self.server.state.news(seen)
                if news.key != key or now_s - sent_s >= _HEARTBEAT_S:
                    seen, key, sent_s = news.seen, news.key, now_s
                    self.wfile.write(b"data: " + msgspec.json.encode(news.state | {"page": PAGE_VERSION}) + b"\n\n")
            elif now_s - sent_s > _SEND_S:
                return
            self.server.stopping.wait(_TICK_S)

    def _answer(
        self, status: HTTPStatus, content_type: str, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        length = {} if status == HTTPStatus.NO_CONTENT else {"Content-Length": str(len(data))}  # RFC 9110, 8.6
        self._send_head(status, content_type, length | (headers or {}))
        self.connection.settimeout(_SEND_S)
        self.end_headers()
        self.wfile.write(data)

    def _send_head(self, status: HTTPStatus, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (SECURITY_HEADERS | {"Content-Type": content_type} | headers).items():
            self.send_header(name, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A status and its phrase; never what the visitor sent."""
        status = HTTPStatus(code)
        self.close_connection = True
        headers = {"Connection": "close"} | _ALSO.get(status, {})
        self._answer(status, "text/plain", f"{status.value} {status.phrase}\n".encode(), headers)

    def version_string(self) -> str:
        """The Server header: no versions."""
        return "rdedge"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Visitors are no business of the line's log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nor are their faults."""
