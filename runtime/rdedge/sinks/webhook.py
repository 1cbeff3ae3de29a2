"""Verdicts and alarms to a web server, signed, by POST."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from rdedge.errors import SinkError, UsageError
from rdedge.events import EventHandler
from rdedge.sinks.outbox import Outbox
from rdedge.sinks.spool import Item
from rdedge.sinks.spooled import SpooledSink

_BATCH = 50
_LONGEST_PAUSE_S = 60.0
_MOST_ANSWER_BYTES = 1 << 16


class WebhookSink(SpooledSink):
    """Posts ``{"verdicts": [...], "alarms": [...]}``, up to 50 records at a time, from a spool on disk.

    Any answer but 2xx within the time is tried again after pauses that double from 0.5 to 60 s, so a record may come
    twice: its ``id`` tells. Redirects are not followed: the records go to the host that was named and no other.

    With a secret every request carries ``X-Rdedge-Timestamp``, seconds since 1970 of this try, and
    ``X-Rdedge-Signature``, ``v1=`` and the hexadecimal HMAC-SHA256 of timestamp, a full stop and the body. The receiver
    refuses what is more than 300 s from its clock, and by ``id`` what it had before: then nothing can be replayed.
    """

    def __init__(
        self,
        *,
        url: str,
        session: str,
        camera: str,
        spool: Path,
        on_event: EventHandler,
        secret: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 5.0,
        spool_bytes: int = 64 << 20,
        drain_s: float = 5.0,
    ):
        """``spool``: a folder of this sink's own; ``tls``: see ``rdedge.sinks.tls``; ``timeout_s``: of a whole request.

        Raises UsageError, and SinkError if the spool cannot be used.
        """
        self._host, self._port, self._path, is_tls = _parts(url)
        self._tls = (tls or ssl.create_default_context()) if is_tls else None
        super().__init__(session=session, camera=camera)
        self._secret = None if secret is None else secret.encode()
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self.outbox = Outbox(
            spool,
            self._deliver,
            name="webhook",
            camera=camera,
            on_event=on_event,
            max_bytes=spool_bytes,
            batch=_BATCH,
            longest_pause_s=_LONGEST_PAUSE_S,
            drain_s=drain_s,
        )

    def close(self) -> None:
        """See Sink.close; takes up to ``drain_s`` and two seconds."""
        self.outbox.close()
        self._hang_up()

    def _deliver(self, items: Sequence[Item]) -> int:
        bodies = {topic: b",".join(i.body for i in items if i.topic == topic) for topic in ("verdict", "alarm")}
        body = b'{"verdicts":[%s],"alarms":[%s]}' % (bodies["verdict"], bodies["alarm"])
        try:
            try:
                status, reason = self._post(body)
            except ConnectionError:
                if self._connection is None:
                    raise
                self._hang_up()  # a server may close a connection that rests: that is no outage
                status, reason = self._post(body)
        except (OSError, http.client.HTTPException) as exc:
            self._hang_up()
            raise self._away(str(exc) or type(exc).__name__) from exc
        if not 200 <= status < 300:
            self._hang_up()
            raise self._away(f"{status} {reason}")
        return len(items)

    def _post(self, body: bytes) -> tuple[int, str]:
        """One request over the connection of the last one if it still stands. Raises OSError, HTTPException."""
        headers = {"Content-Type": "application/json", "User-Agent": "rdedge"}
        if self._secret is not None:
            timestamp = f"{datetime.now(timezone.utc).timestamp():.0f}"
            signature = hmac.new(self._secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
            headers |= {"X-Rdedge-Timestamp": timestamp, "X-Rdedge-Signature": f"v1={signature}"}
        connection = self._connection or self._connect()
        with _time_limit(connection, self._timeout_s):
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            response.read(_MOST_ANSWER_BYTES)
        self._connection = connection
        if not response.isclosed():  # an endless answer, or half of one: the next must not be mixed up with it
            self._hang_up()
        hint = ": redirects are not followed" if 300 <= response.status < 400 else ""
        return response.status, response.reason + hint

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _away(self, reason: str) -> SinkError:
        return SinkError(f"{self._host}:{self._port}: {reason}", remedy="check the server, its address and the secret")


@contextmanager
def _time_limit(connection: http.client.HTTPConnection, limit_s: float) -> Iterator[None]:
    """Raises TimeoutError when it took longer, whatever else happened; on any error the connection is closed.

    The socket's own limit is for each read: a server that answers byte by byte would hold us for hours.
    """
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        if isinstance(connection.sock, socket.socket):
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as exc:
        connection.close()
        if is_over.is_set() and not isinstance(exc, TimeoutError):
            raise TimeoutError(f"no whole answer within {limit_s} s") from exc
        raise
    finally:
        timer.cancel()
    if is_over.is_set():
        connection.close()
        raise TimeoutError(f"no whole answer within {limit_s} s")


def _parts(url: str) -> tuple[str, int, str, bool]:
    """Host, port, path with query, whether TLS. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"webhook {url!r}: {exc}", remedy="name it as https://host:port/path") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or not url.isascii():
        raise UsageError(f"webhook {url!r}", remedy="name it as https://host:port/path, without name and password")
    is_tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, port or (443 if is_tls else 80), path, is_tls
