"""A stream's work recorded once and replayed by one call a frame, through the driver library itself.

ctypes instead of cuda-bindings: six calls of the library that pycuda has loaded anyway, against tens of megabytes on a
board. Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html and
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__STREAM.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

_LIBRARY = "libcuda.so.1"
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating meanwhile
_HANDLE = ctypes.c_void_p
_CALLS: dict[str, list[Any]] = {
    "cuStreamBeginCapture_v2": [_HANDLE, ctypes.c_int],
    "cuStreamEndCapture": [_HANDLE, ctypes.POINTER(_HANDLE)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong],
    "cuGraphLaunch": [_HANDLE, _HANDLE],
    "cuGraphExecDestroy": [_HANDLE],
    "cuGraphDestroy": [_HANDLE],
}


class CudaGraphError(Exception):
    """The driver cannot record or replay; the message says which call and why. For the backend, not for users."""


class CudaGraph:
    """What ``enqueue`` put on a stream, ready to be replayed. A CUDA context must be current in each method."""

    def __init__(self, stream_handle: int, enqueue: Callable[[], None]):
        """Records ``enqueue``, which runs nothing now, and must have run in full before.

        Raises CudaGraphError, and what ``enqueue`` raises; the stream is as before then and nothing stays allocated.
        """
        driver = _driver()
        self._executable = _HANDLE()
        graph = _HANDLE()
        _call(driver.cuStreamBeginCapture_v2, stream_handle, _THREAD_LOCAL)
        try:
            try:
                enqueue()
            except BaseException:  # told rather than what follows from it
                driver.cuStreamEndCapture(stream_handle, ctypes.byref(graph))
                raise
            _call(driver.cuStreamEndCapture, stream_handle, ctypes.byref(graph))
            _call(driver.cuGraphInstantiateWithFlags, ctypes.byref(self._executable), graph, 0)
        finally:
            if graph:
                driver.cuGraphDestroy(graph)

    def launch(self, stream_handle: int) -> None:
        """Start the recorded work on a stream, with the memory it was recorded with. Raises CudaGraphError."""
        _call(_driver().cuGraphLaunch, self._executable, stream_handle)

    def free(self) -> None:
        """Give it back; may be called twice, and while nothing of it is under way."""
        if self._executable:
            _driver().cuGraphExecDestroy(self._executable)  # an error here is that of earlier work, told by then
            self._executable = _HANDLE()


@cache
def _driver() -> Any:
    """The driver library with the calls of this module. Raises CudaGraphError where one is missing (CUDA < 11.4)."""
    try:
        library = ctypes.CDLL(_LIBRARY)
        for name, argument_types in _CALLS.items():
            getattr(library, name).argtypes = argument_types
    except (OSError, AttributeError) as exc:
        raise CudaGraphError(f"the driver has no CUDA graphs ({exc})") from exc
    return library


def _call(function: Any, *arguments: Any) -> None:
    status: int = function(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        raise CudaGraphError(f"{function.__name__} fails: {(text.value or b'').decode() or status}")
