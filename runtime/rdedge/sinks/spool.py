"""Numbered records in files that a writer appends to and a reader follows, up to so many bytes."""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from rdedge.errors import SinkError
from rdedge.sinks.lines import LineLog

_SEGMENTS = 16  # of the allowed size: the share that is lost at once when it is full
_SUFFIX = ".spool"


@dataclass(frozen=True, slots=True)
class Item:
    """One record: its number, which only grows, what it is, and its JSON."""

    seq: int
    topic: str
    body: bytes


def encode(item: Item) -> bytes:
    """A line: CRC-32 of the rest, number, topic, body."""
    rest = b"%d %s %s" % (item.seq, item.topic.encode(), item.body)
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def decode(line: bytes) -> Item | None:
    """None for a line that is not what ``encode`` made."""
    crc, _, rest = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(rest):
        return None
    seq, topic, body = rest.split(b" ", 2)
    return Item(int(seq), topic.decode(), body)


@dataclass(slots=True)
class _Segment:
    """One file, named by the number of its first record."""

    path: Path
    last_seq: int
    records: int = 0
    size_bytes: int = 0
    is_read: bool = False


@dataclass(slots=True)
class _Reading:
    """How far the reader is in a segment; ``seen``: whole records before ``offset``."""

    segment: _Segment
    file: BufferedReader
    offset: int = 0
    seen: int = 0


class Spool:
    """One thread at a time appends, one reads and acknowledges.

    A segment is deleted when all of it is acknowledged, or as the oldest when the spool would exceed ``max_bytes``.
    """

    def __init__(self, folder: Path, *, max_bytes: int):
        """Opens or makes ``folder``. Raises SinkError if it cannot be used or another process uses it."""
        self.damaged = 0  # records of earlier processes that cannot be read
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._log = LineLog()
        self._reading: _Reading | None = None
        self._is_busy = False  # the reader is in a file, off the lock
        self._is_closed = False
        self._lost = 0
        self._segments: list[_Segment] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _only_user(folder)
            self._delivered_fd = os.open(folder / "delivered", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.acked = _number(os.pread(self._delivered_fd, 20, 0))
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                segment = self._scan(path)
                if segment.records:
                    self._segments.append(segment)
                else:  # killed before its first record was whole: its name will be used again
                    path.unlink()
        except OSError as exc:
            raise SinkError(
                f"{folder}: cannot keep what waits for delivery ({exc.strerror})",
                remedy="check the disk's space and the folder's permissions",
            ) from exc
        self.taken = self.acked  # the last record that was read, the last that was delivered
        self.last_seq = max([self.acked, *(segment.last_seq for segment in self._segments)])

    @property
    def unread(self) -> int:
        """Records on the disk that wait to be read."""
        with self._lock:
            return sum(self._unread(segment) for segment in self._segments)

    def append(self, line: bytes) -> None:
        """A line of ``encode``, numbered above all before it. Raises OSError, and then nothing of it is there."""
        seq = int(line.split(b" ", 2)[1])
        with self._lock:
            is_full = self._log.size_bytes >= self._max_bytes // _SEGMENTS
            if not self._log.is_open or is_full or self._segments[-1].is_read:
                path = self._folder / f"{seq:020d}{_SUFFIX}"
                self._log.open(path)
                self._segments.append(_Segment(path, last_seq=seq - 1))
            while len(self._segments) > 1 and sum(s.size_bytes for s in self._segments) + len(line) > self._max_bytes:
                self._lost += self._unread(self._segments[0])
                self._remove(self._segments[0])
            self._log.append(line)
            segment = self._segments[-1]
            segment.last_seq = self.last_seq = seq
            segment.records += 1
            segment.size_bytes += len(line)

    def read(self, limit: int) -> list[Item]:
        """The next records, in order, at most ``limit``; [] if there are none. Each is read once by a process."""
        items: list[Item] = []
        while len(items) < limit:
            with self._lock:
                reading = self._next_reading()
                if reading is None:
                    break
                end, self._is_busy = reading.segment.size_bytes, True
            found, offset = _records(reading.file, reading.offset, end, limit - len(items))
            with self._lock:
                self._is_busy = False
                if reading is not self._reading:  # dropped meanwhile, and counted
                    reading.file.close()
                    continue
                items += [item for item in found if item.seq > self.taken]
                self.taken = max(self.taken, *(item.seq for item in found), 0)
                reading.seen += len(found)
                has_ended, reading.offset = offset == reading.offset, offset
                if has_ended and reading.segment is self._segments[-1]:
                    break
                if has_ended:
                    self._lost += self._unread(reading.segment)
                    reading.segment.is_read = True
        return items

    def skip_to(self, seq: int) -> None:
        """Records up to this one were taken from elsewhere."""
        with self._lock:
            self.taken = max(self.taken, seq)

    def ack(self, seq: int) -> None:
        """All records up to this one were delivered."""
        with self._lock:
            if self._is_closed:
                return
            self.acked = max(self.acked, seq)
            with suppress(OSError):  # costs no record: after a crash some are sent again
                os.pwrite(self._delivered_fd, b"%020d\n" % self.acked, 0)
                while len(self._segments) > 1 and self._segments[0].last_seq <= self.acked:
                    self._remove(self._segments[0])

    def take_lost(self) -> int:
        """Unread records that were dropped, or became unreadable, since the last call."""
        with self._lock:
            lost, self._lost = self._lost, 0
            return lost

    def close(self) -> None:
        """Sync and release; nothing left to deliver leaves no segment. May be called twice. Raises SinkError."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._stop_reading()
            try:
                self._log.close()
                while self._segments and self._segments[0].last_seq <= self.acked:
                    self._remove(self._segments[0])
            except OSError as exc:
                raise SinkError(f"{self._folder}: {exc.strerror}", remedy="check the disk") from exc
            finally:
                os.close(self._delivered_fd)
                os.close(self._lock_fd)

    def _scan(self, path: Path) -> _Segment:
        segment = _Segment(path, last_seq=_number(path.stem.encode()) - 1, size_bytes=path.stat().st_size)
        with path.open("rb") as file:
            for line in file:
                item = decode(line)
                if item is not None:
                    segment.records += 1
                    segment.last_seq = max(segment.last_seq, item.seq)
                elif line.endswith(b"\n"):  # half a line was never promised to anyone
                    self.damaged += 1
        return segment

    def _unread(self, segment: _Segment) -> int:
        if segment.is_read or segment.last_seq <= self.taken:
            return 0
        if self._reading is not None and self._reading.segment is segment:
            return segment.records - self._reading.seen
        return min(segment.records, segment.last_seq - self.taken)

    def _next_reading(self) -> _Reading | None:
        """The first segment that was not read to its end."""
        for segment in self._segments:
            if segment.is_read or self._is_closed:
                continue
            if self._reading is not None and self._reading.segment is segment:
                return self._reading
            self._stop_reading()
            try:
                self._reading = _Reading(segment, segment.path.open("rb"))
            except FileNotFoundError:  # somebody emptied the folder
                self._lost += self._unread(segment)
                segment.is_read = True
            else:
                return self._reading
        return None

    def _remove(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
        if self._reading is not None and self._reading.segment is segment:
            self._stop_reading()

    def _stop_reading(self) -> None:
        """While the reader is in the file, it closes it itself."""
        if self._reading is not None and not self._is_busy:
            self._reading.file.close()
        self._reading = None


def _records(file: BufferedReader, offset: int, end: int, limit: int) -> tuple[list[Item], int]:
    """Whole records from ``offset`` on, and where the next begins; damaged lines are passed over."""
    items: list[Item] = []
    while len(items) < limit and offset < end and (line := file.readline()):
        offset += len(line)
        item = decode(line)
        if item is not None:
            items.append(item)
    return items, offset


def _number(digits: bytes) -> int:
    """0 for what is no number: then all is delivered again."""
    return int(digits) if digits.isdigit() else 0


def _only_user(folder: Path) -> int:
    """Two processes would deliver each other's records. The lock ends with the process."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise SinkError(f"{folder}: another process delivers from it", remedy="name a folder of its own") from exc
    return handle
