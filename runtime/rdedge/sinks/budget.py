"""Keeps a folder of pictures within so many bytes: the oldest go first, the last rejects never."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from rdedge.atomic import clear_abandoned

GOOD_FOLDER = "good"


@dataclass(frozen=True, slots=True)
class _Picture:
    written_ns: int
    path: str
    size_bytes: int


class DiskBudget:
    """Of all pictures below a folder, whichever run wrote them; shared by cameras, from any thread.

    Pictures in a folder named ``good`` are samples of good parts, all others are rejects. The age is the file's, so a
    wall clock that was wrong in one run puts that run's pictures in the wrong order.
    """

    def __init__(self, root: Path, *, max_bytes: int, keep_rejects: int):
        """The newest ``keep_rejects`` rejects stay even if they alone exceed ``max_bytes``. Reads the folder later."""
        self._root = root
        self._max_bytes = max_bytes
        self._keep_rejects = keep_rejects
        self._lock = threading.Lock()
        self._good: deque[_Picture] = deque()  # oldest first, as rejects
        self._rejects: deque[_Picture] = deque()
        self._used_bytes = 0
        self._is_read = False

    def make_room(self, size_bytes: int) -> None:
        """Remove pictures until so many bytes fit, as far as that is allowed. Raises OSError."""
        with self._lock:
            if not self._is_read:
                self._read_folder()
            while self._used_bytes + size_bytes > self._max_bytes:
                queue = self._next_to_go()
                if queue is None:
                    return
                Path(queue[0].path).unlink(missing_ok=True)
                self._used_bytes -= queue.popleft().size_bytes

    def add(self, path: Path) -> None:
        """A picture was written. Raises OSError."""
        with self._lock:
            self._add(str(path), path.stat())

    def _add(self, path: str, stat: os.stat_result) -> None:
        is_good = os.path.basename(os.path.dirname(path)) == GOOD_FOLDER
        (self._good if is_good else self._rejects).append(_Picture(stat.st_mtime_ns, path, stat.st_size))
        self._used_bytes += stat.st_size

    def _next_to_go(self) -> deque[_Picture] | None:
        """The queue whose first picture is the oldest that may go."""
        may_go = [self._good] if self._good else []
        if len(self._rejects) > self._keep_rejects:
            may_go.append(self._rejects)
        return min(may_go, key=lambda queue: queue[0].written_ns, default=None)

    def _read_folder(self) -> None:
        """What earlier runs left; half-written pictures of killed ones and empty folders go."""
        found: list[tuple[os.stat_result, str]] = []
        for folder, _, names in os.walk(self._root, topdown=False):
            for name in names:
                path = Path(folder, name)
                if name.startswith(".") and ".partial-" in name:
                    clear_abandoned(path.with_name(name[1:].rpartition(".partial-")[0]))
                elif path.suffix == ".jpg":
                    found.append((path.stat(), str(path)))
            if not os.listdir(folder) and Path(folder) != self._root:
                os.rmdir(folder)
        for stat, name in sorted(found, key=lambda pair: (pair[0].st_mtime_ns, pair[1])):
            self._add(name, stat)
        self._is_read = True
