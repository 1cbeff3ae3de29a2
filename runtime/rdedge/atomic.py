"""Files and folders that appear whole or not at all, whatever kills the process."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rdedge.errors import UsageError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot; the files themselves are safe by now
        _sync(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step that survives a power cut. Raises OSError, naming ``path``."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as exc:
        partial.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            exc.filename, exc.filename2 = str(path), None  # a full disk names no file, the others name the partial one
        raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Fill the folder that is yielded; on leaving it becomes ``out``, on any error it vanishes.

    Folders left by killed processes are cleared first. Raises UsageError if ``out`` exists; the OSError of a full disk
    names ``out``.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(out)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder) / name)
            _sync_folder(Path(folder))
        os.rename(partial, out)
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(exc, OSError) and exc.errno in _DISK_FULL:
            exc.filename = str(out)
        raise
    _sync_folder(out.parent)


def refuse_existing(out: Path) -> None:
    """Raises UsageError if there is anything at ``out``, be it a link to nowhere."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} already exists", remedy="name another folder or remove it first")


def clear_abandoned(out: Path) -> None:
    """Remove what killed processes left of the file or folder ``out``."""
    for partial in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        if not pid.isdecimal() or _is_alive(int(pid)):
            continue
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # ours: left by an earlier process of the same number, as in every restarted container
