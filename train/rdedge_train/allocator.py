"""Has glibc keep the memory of freed tensors, since new pages from the system cost a third of a training step."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc; see mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """For the whole process and its life: large arrays come from the heap, and its end is not given back.

    By default glibc maps large tensors anew each time, and the kernel clears each of their pages again. Resident memory
    stays at the highest it was. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(parameter, value)
