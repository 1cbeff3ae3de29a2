"""Work that the fake TensorRT puts on a CUDA stream: it runs when the stream gets to it, or a graph replays it."""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE
_LAUNCH_FAILED = 719  # CUDA_ERROR_LAUNCH_FAILED
_HANDLE = ctypes.c_void_p
_numbers = itertools.count(1)
_works: dict[int, tuple[Callable[[], bool], bool]] = {}  # what to run, and whether it may run again


@cache
def driver() -> Any:
    """The stand-in driver, which pycuda has loaded."""
    library = ctypes.CDLL("libcuda.so.1")
    library.nullcuda_report.restype = ctypes.c_char_p
    library.nullcuda_errors.restype = library.nullcuda_refused.restype = ctypes.c_ulong
    library.nullcuda_refuse.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
    return library


def report() -> dict[str, Any]:
    """What the driver has seen: calls, misuse, and what is not given back."""
    found: dict[str, Any] = json.loads(driver().nullcuda_report())
    return found


def refuse(api: str, *, code: int = INVALID_VALUE, skip: int = 0, count: int = 1) -> None:
    """Let calls of the driver fail: ``count`` of those named so ("*": all) after ``skip`` of them; "" ends it."""
    driver().nullcuda_refuse(api.encode(), code, skip, count)


@ctypes.CFUNCTYPE(None, _HANDLE)
def _run(number: int) -> None:
    work, is_recorded = _works[number]
    if not is_recorded:
        del _works[number]
    if not work():
        driver().nullcuda_kernel_fails(_LAUNCH_FAILED)


def is_recording(stream_handle: int) -> bool:
    """Whether the stream is being captured into a graph."""
    status = ctypes.c_int()
    assert driver().cuStreamIsCapturing(_HANDLE(stream_handle), ctypes.byref(status)) == 0
    return status.value != 0


def enqueue(stream_handle: int, work: Callable[[], bool]) -> bool:
    """Put work on the stream; where it returns False the GPU fails. False where the driver refuses to take it."""
    number = next(_numbers)
    _works[number] = (work, is_recording(stream_handle))
    return bool(driver().cuLaunchHostFunc(_HANDLE(stream_handle), _run, _HANDLE(number)) == 0)


def read(address: int, host: np.ndarray) -> bool:
    """Device memory -> ``host``; False, and misuse in the driver's report, where it is none."""
    if driver().nullcuda_reach(ctypes.c_uint64(address), ctypes.c_size_t(host.nbytes)) != 0:
        return False
    ctypes.memmove(host.ctypes.data, address, host.nbytes)
    return True


def write(address: int, host: np.ndarray) -> bool:
    """``host`` -> device memory; False, and misuse in the driver's report, where it is none."""
    if driver().nullcuda_reach(ctypes.c_uint64(address), ctypes.c_size_t(host.nbytes)) != 0:
        return False
    ctypes.memmove(address, host.ctypes.data, host.nbytes)
    return True
