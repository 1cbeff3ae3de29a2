"""Peak memory of a process, from the kernel's account of it."""

from __future__ import annotations

from pathlib import Path


def peak_memory_mb(pid: int | str = "self") -> float:
    """Peak resident memory of a living process. ``getrusage`` would begin with what the process had that started it.

    Raises OSError where there is no such process.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
