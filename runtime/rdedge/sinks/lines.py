"""Files of whole lines: what a kill or a full disk left of one is cut off, and a thread brings them to the disk."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

_LONGEST_TAIL = 1 << 20  # a file without a line end in so many bytes is not one of ours
_CLOSE_S = 5.0

_syncs: set[object] = set()  # under way in this process


@contextmanager
def syncing() -> Iterator[None]:
    """While this is open, lines are written by threads: the disk may make any write wait."""
    mark = object()
    _syncs.add(mark)
    try:
        yield
    finally:
        _syncs.discard(mark)


def is_syncing() -> bool:
    """Whether this process syncs anything."""
    return bool(_syncs)


class LineLog:
    """Appends lines to one file after another.

    A line that was appended survives the end of the process, however it ends: the kernel has it. A power cut may cost
    the last ``sync_s``: so often a thread calls fdatasync.
    """

    def __init__(self, sync_s: float = 1.0):
        self.size_bytes = 0
        self._sync_s = sync_s
        self._fd: int | None = None
        self._closed_fds: list[int] = []  # of earlier files, not yet synced
        self._sync_fault: OSError | None = None
        self._changed = threading.Condition()
        self._folder: Path | None = None  # has a new name in it, not yet synced
        self._is_dirty = False
        self._is_closing = False
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a file to append to."""
        return self._fd is not None

    def open(self, path: Path) -> None:
        """Append to ``path`` from now on; half a line that a killed process left is cut off. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self.size_bytes = _end_whole(fd)
        except BaseException:
            os.close(fd)
            raise
        with self._changed:
            if self._fd is not None:
                self._closed_fds.append(self._fd)
            self._fd = fd
            self._folder = path.parent
            self._is_dirty = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_synced, name="rdedge-sync", daemon=True)
            self._thread.start()

    def append(self, line: bytes) -> None:
        """One line with its end. Raises OSError, also for an earlier sync that failed; then nothing of it is there."""
        assert self._fd is not None
        fault, self._sync_fault = self._sync_fault, None
        if fault is not None:
            raise fault
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes, the disk is full")
        except OSError:
            with suppress(OSError):  # a device has no length
                os.ftruncate(self._fd, self.size_bytes)
            raise
        self.size_bytes += len(line)
        self._is_dirty = True

    def close(self) -> None:
        """Sync and close; may be called twice. Raises OSError where a file system only now says that it cannot."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
            if self._thread.is_alive():
                raise OSError(errno.ETIMEDOUT, "the disk does not answer")
        self._thread = None
        fault, self._sync_fault = self._sync_fault, None
        fd, self._fd = self._fd, None
        self._is_closing = False
        if fd is not None:
            fault = _fault_of(os.close, fd) or fault
        if fault is not None:
            raise fault

    def _keep_synced(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                is_last = self._changed.wait_for(lambda: self._is_closing, self._sync_s)
                closed, self._closed_fds = self._closed_fds, []
                is_dirty, self._is_dirty = self._is_dirty, False
                folder, self._folder = self._folder, None
                current = self._fd
            with syncing():  # off the lock: a card may take a second, and the line does not wait for it
                if folder is not None:
                    _sync_folder(folder)
                faults = [_fault_of(release, fd) for fd in closed for release in (_sync, os.close)]
                if is_dirty and current is not None:
                    faults.append(_fault_of(_sync, current))
            self._sync_fault = next(filter(None, faults), self._sync_fault)


def _fault_of(action: Callable[[int], None], fd: int) -> OSError | None:
    try:
        action(fd)
    except OSError as exc:
        return exc
    return None


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EROFS):  # a pipe or a device, such as /dev/null
            raise


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot; the files themselves are safe
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _end_whole(fd: int) -> int:
    """Its length, after half a line at its end is gone; a last line that only lacks its end gets it."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _LONGEST_TAIL, max(0, size - _LONGEST_TAIL))
    if not tail or tail.endswith(b"\n"):
        return size
    last = tail[tail.rfind(b"\n") + 1 :]
    if len(last) == _LONGEST_TAIL or _is_json(last):
        return size + os.write(fd, b"\n")
    os.ftruncate(fd, size - len(last))
    return size - len(last)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
