"""The GPU as the backends need it: a context, a stream, one buffer a tensor. The only module that imports pycuda.

Sources: https://documen.tician.de/pycuda/driver.html and
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__PRIMARY__CTX.html
"""

from __future__ import annotations

import atexit
import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.contract import TensorSpec
from rdedge.errors import BackendError, MissingExtraError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda does not name


def load_pycuda() -> Any:
    """pycuda.driver. Raises MissingExtraError where it or the NVIDIA driver's library is absent."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as exc:
        raise MissingExtraError(
            f"pycuda cannot be loaded ({exc})",
            remedy="install the NVIDIA driver and `pip install 'rdedge[tensorrt]'`; `rdedge doctor` says what is there",
        ) from exc


@cache
def _primary_context() -> tuple[Any, Any]:
    """Device and context, kept to the end of the process: making them anew for each engine takes long.

    Without ``detach`` pycuda gives a primary context back by a call that CUDA does not allow for it.
    """
    cuda = load_pycuda()
    cuda.init()
    device = cuda.Device(0)
    context = device.retain_primary_context()
    atexit.register(context.detach)
    return device, context


class CudaDevice:
    """The first GPU this process sees (CUDA_VISIBLE_DEVICES chooses), through its primary context as TensorRT itself.

    Raises BackendError without a usable GPU, MissingExtraError without pycuda.
    """

    def __init__(self) -> None:
        self._cuda = load_pycuda()
        self.error: type[Exception] = self._cuda.Error
        try:
            device, self._context = _primary_context()
            self.name: str = device.name()
            self.compute_capability = ".".join(map(str, device.compute_capability()))
            self.shares_memory = bool(device.get_attribute(self._cuda.device_attribute.INTEGRATED))
        except self.error as exc:
            raise BackendError(f"no usable NVIDIA GPU ({exc})", remedy="see what `rdedge doctor` says") from exc

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the GPU's context this thread's for a while; what other libraries had set is then as before."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def stream(self) -> Any:
        """A new stream, which no other stream waits for; its ``handle`` is what TensorRT wants."""
        return self._cuda.Stream(_NON_BLOCKING)

    def event(self) -> Any:
        """A new event that takes times."""
        return self._cuda.Event()

    def buffer(self, spec: TensorSpec) -> Buffer:
        """A new buffer of this tensor's size."""
        return Buffer(self._cuda, spec, shares_memory=self.shares_memory)


class Buffer:
    """Memory of one tensor: ``host`` for the CPU, ``address`` for the engine.

    Where CPU and GPU share their memory (Jetson) both are the same bytes and nothing is copied; elsewhere ``host`` is
    page-locked, so that copies are asynchronous.
    """

    def __init__(self, cuda: Any, spec: TensorSpec, *, shares_memory: bool):
        self._cuda = cuda
        self._on_device: Any = None
        flags = cuda.host_alloc_flags.DEVICEMAP if shares_memory else 0
        self.host: NDArray[Any] = cuda.pagelocked_empty(spec.shape, np.dtype(spec.dtype), mem_flags=flags)
        self._allocation: Any = self.host.base
        try:
            if shares_memory:
                self.address = int(self._allocation.get_device_pointer())
            else:
                self._on_device = cuda.mem_alloc(math.prod(spec.shape) * self.host.itemsize)
                self.address = int(self._on_device)
        except BaseException:
            self.free()
            raise

    def upload(self, stream: Any) -> None:
        """Start making the GPU see what ``host`` holds."""
        if self._on_device is not None:
            self._cuda.memcpy_htod_async(self._on_device, self.host, stream)

    def download(self, stream: Any) -> None:
        """Start making ``host`` hold what the GPU wrote."""
        if self._on_device is not None:
            self._cuda.memcpy_dtoh_async(self.host, self._on_device, stream)

    def free(self) -> None:
        """Give both memories back; ``host`` and ``address`` must not be used afterwards. May be called twice."""
        if self._on_device is not None:
            self._on_device.free()
            self._on_device = None
        if self._allocation is not None:
            self._allocation.free()
            self._allocation = None
