"""Network cameras that send JPEGs over HTTP: ``http://user:password@host/video.mjpg`` (multipart/x-mixed-replace)."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import Protocol
from urllib.parse import unquote, urlsplit

from rdedge.errors import CameraFault, ImageError
from rdedge.frames import Frame
from rdedge.images import decode_image
from rdedge.sources.base import SourceInfo
from rdedge.sources.uri import host_and_port, masked

_TIMEOUT_S = 5.0
_CLOSE_WAIT_S = 0.5
_LONGEST_LINE = 4096
_LARGEST_PICTURE = 64 << 20
_MOST_HEADERS = 32


class _Response(Protocol):
    headers: Message

    def fileno(self) -> int: ...
    def readline(self, limit: int = ...) -> bytes: ...
    def read(self, amount: int = ...) -> bytes: ...
    def close(self) -> None: ...


class MjpegCamera:
    """A Camera over one HTTP response. Its parts are read here, as FFmpeg would hide a damaged picture."""

    def __init__(self, uri: str):
        """Raises UsageError for a wrong address, CameraFault."""
        self.name = masked(uri)
        self._info = SourceInfo()
        self._index = 0
        self._is_closed = False
        self._is_at_part = False  # its boundary has been read
        self._lock = threading.Lock()
        self._response = _opened(uri, self.name)
        self._socket = socket.socket(fileno=os.dup(self._response.fileno()))  # to end a read that waits
        boundary = self._response.headers.get_param("boundary")
        kind = self._response.headers.get_content_type()
        if not kind.startswith("multipart/") or not isinstance(boundary, str):
            self.close()
            raise CameraFault(
                "misconfigured", f"{self.name}: is {kind}, no stream of JPEGs", remedy="see the camera's manual"
            )
        self._boundary = b"--" + boundary.removeprefix("--").encode()  # some write the dashes into the header too

    @property
    def info(self) -> SourceInfo:
        """See Camera; HTTP promises no rate and knows no losses."""
        return self._info

    def read(self) -> Frame | None:
        """See Camera."""
        try:
            with self._lock:
                data = self._part()
        except (OSError, ValueError, http.client.HTTPException) as exc:  # ValueError: closed by another thread
            if self._is_closed:
                return None
            kind = "silent" if isinstance(exc, TimeoutError) else "unplugged"
            raise CameraFault(kind, f"{self.name}: {exc or 'no frame'}", remedy="check its power and cable") from exc
        arrived_s = time.monotonic()
        if not data.startswith(b"\xff\xd8"):
            raise ImageError(f"{self.name}: a part that is no JPEG", remedy="check the camera")
        image = decode_image(data, self.name)
        height, width = image.shape[:2]
        self._info = SourceInfo(size_hw=(height, width))
        frame = Frame(image_bgr_u8=image, index=self._index, captured_at_s=arrived_s, source=self.name)
        self._index += 1
        return frame

    def close(self) -> None:
        """See Camera; a read that waits ends at once."""
        self._is_closed = True
        with contextlib.suppress(OSError):  # it is closed already, by us or by the camera
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._lock.acquire(timeout=_CLOSE_WAIT_S):
            try:
                self._response.close()
                self._socket.close()
            finally:
                self._lock.release()

    def _part(self) -> bytes:
        """The bytes of the next part. Raises OSError where the stream ends."""
        while not self._is_at_part:
            self._is_at_part = self._line().startswith(self._boundary)
        self._is_at_part = False
        length = None
        for _ in range(_MOST_HEADERS):
            line = self._line().strip()
            if not line:
                break
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                length = int(value)
        if length is None:
            return self._until_boundary()
        if not 0 < length <= _LARGEST_PICTURE:
            raise ImageError(f"{self.name}: a part of {length} bytes", remedy="check the camera")
        data = self._response.read(length)
        if len(data) < length:
            raise OSError("the stream ended within a frame")
        return data

    def _until_boundary(self) -> bytes:
        """A part of unknown length: it is whole when the next boundary comes, a frame time later."""
        data = b""
        while not (line := self._line()).startswith(self._boundary):
            data += line
            if len(data) > _LARGEST_PICTURE:
                raise OSError("a frame without end")
        self._is_at_part = True
        return data.removesuffix(b"\r\n")

    def _line(self) -> bytes:
        line = self._response.readline(_LONGEST_LINE)
        if not line:
            raise OSError("the stream ended")
        return line


class _ClosesRefusals(urllib.request.BaseHandler):
    """urllib asks again with the password and leaves the first answer open."""

    handler_order = 100  # before the two that ask again

    def http_error_401(self, request: object, answer: _Response, *_: object) -> None:
        answer.close()


def _opened(uri: str, shown: str) -> _Response:
    """The answer to a GET, by Basic or Digest authentication; proxies are for browsers, not for cameras."""
    host_and_port(uri)
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        passwords.add_password(None, bare, unquote(parts.username), unquote(parts.password or ""))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        _ClosesRefusals(),
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
    )
    try:
        response: _Response = opener.open(bare, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code in (401, 403):
            remedy = "write http://user:password@host, %-encoded"
            raise CameraFault("credentials", f"{shown}: user or password refused", remedy=remedy) from exc
        kind = "misconfigured" if exc.code == 404 else "unplugged"
        raise CameraFault(kind, f"{shown}: answers {exc.code} {exc.reason}", remedy="see the camera's manual") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise CameraFault(
            "unplugged", f"{shown}: no answer ({reason})", remedy="check its power, cable and address"
        ) from exc
    return response
