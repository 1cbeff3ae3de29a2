"""A really full disk for the tests: a small tmpfs, that root mounts. ``small_disks.py bytes|files PATH`` fills it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

SIZE_MB = 40  # a deploy wants 16 MB to be left
INODES = 200


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounted on an empty folder, with few inodes; yields False, with nothing mounted, to anyone who may not mount."""
    options = f"size={SIZE_MB}m,nr_inodes={INODES}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill_command(path: Path, what: Literal["bytes", "files"] = "bytes") -> str:
    """For the shell: afterwards there is room for no further byte, or for no further file, be it a link."""
    return shlex.join([sys.executable, str(Path(__file__)), what, str(path)])


def fill(what: str, path: Path) -> None:
    """Raises the OSError of a full disk."""
    if what == "bytes":
        with path.open("wb", buffering=0) as f:
            while True:
                f.write(bytes(1 << 16))
    path.mkdir()
    for number in range(INODES):
        (path / str(number)).touch()


if __name__ == "__main__":
    try:
        fill(sys.argv[1], Path(sys.argv[2]))
    except OSError as exc:
        sys.exit(0 if exc.errno == 28 else str(exc))  # ENOSPC
    sys.exit(f"{os.path.dirname(sys.argv[2])} is no small disk")
