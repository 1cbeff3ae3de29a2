"""TensorRT and TensorRT-RTX: runs an engine that `rdedge engine` built on this device.

Named tensors and ``execute_async_v3`` only, which every TensorRT since 8.5 has
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import Prediction, check_frame
from rdedge.backends.cuda import CudaDevice
from rdedge.backends.cuda_graph import CudaGraphError
from rdedge.backends.trt_library import ErrorLog, load_tensorrt, version_of
from rdedge.backends.trt_slot import Slot
from rdedge.bundle import Bundle
from rdedge.contract import GraphSpec, Precision, TensorSpec
from rdedge.engines import EngineKey, Flavour, read_engine, read_record, rebuild_command
from rdedge.errors import BackendError
from rdedge.good_parts import Threshold


class TensorRtBackend:
    """One engine with a slot for each frame that may be under way. One thread uses it: the one that opened it.

    ``cuda_graph`` says "replayed" or why frames are enqueued one by one instead, which gives the same answers.
    """

    def __init__(
        self,
        engine: bytes,
        graph: GraphSpec,
        flavour: Flavour,
        *,
        remedy: str,
        frames_in_flight: int = 1,
        dla_core: int | None = None,
    ):
        """Loads a serialized engine whose tensors must be those of ``graph``, and runs it once.

        Each frame in flight has an execution context and buffers of its own. Raises BackendError with ``remedy`` if it
        cannot, MissingExtraError. Nothing stays allocated then.
        """
        self.name: str = flavour
        self.frames_in_flight = frames_in_flight
        self.thresholds: tuple[Threshold, Threshold] | None = None
        self.device_ms = 0.0  # of the last frame finished: copies and inference by the GPU's clock
        self._graph = graph
        self._remedy = remedy
        self._dla_core = dla_core
        self._thread = threading.get_ident()
        self._runtime: Any = None
        self._engine: Any = None
        self._slots: list[Slot] = []
        self._idle: deque[Slot] = deque()
        self._under_way: deque[Slot] = deque()  # the oldest frame first
        self._trt = load_tensorrt(flavour)
        self._log = ErrorLog(self._trt)
        self._device: CudaDevice | None = CudaDevice()
        try:
            with self._device.current():
                self._open(self._device, engine)
                self.cuda_graph = self._record_graphs(self._device)
        except (self._device.error, CudaGraphError) as exc:
            self.close()
            raise BackendError(f"the GPU refuses the engine ({exc})", remedy="close what else uses the GPU") from exc
        except BaseException:
            self.close()
            raise

    def _open(self, device: CudaDevice, engine: bytes) -> None:
        """Every object goes into an attribute at once, so that ``close`` frees what a failure leaves."""
        self._runtime = self._trt.Runtime(self._log.logger)
        if self._dla_core is not None:
            self._runtime.DLA_core = self._dla_core
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(f"{self.name} refuses the engine ({self._log.reason()})", remedy=self._remedy)
        self._check_tensors()
        for _ in range(self.frames_in_flight):
            slot = Slot(device, self._log, remedy=self._remedy)
            self._slots.append(slot)
            slot.context = self._engine.create_execution_context()
            if slot.context is None:
                raise BackendError(
                    f"{self.name} cannot set the engine up ({self._log.reason()})",
                    remedy="close what else uses the GPU",
                )
            slot.open(self._graph)
        self._idle.extend(self._slots)

    def _record_graphs(self, device: CudaDevice) -> str:
        """Runs each slot plainly, which also loads what CUDA loads late, then tries it as a graph: ``cuda_graph``."""
        blank_u8 = np.zeros(self._graph.frame.shape, np.uint8)
        for slot in self._slots:
            slot.start(blank_u8)
            slot.finish()
            try:
                slot.record()
                slot.start(blank_u8)
                slot.finish()
            except (device.error, CudaGraphError, BackendError) as exc:
                for each in self._slots:
                    each.forget_record()
                slot.start(blank_u8)  # the attempt must have left it whole
                slot.finish()
                return exc.problem if isinstance(exc, BackendError) else str(exc)
        return "replayed"

    def _check_tensors(self) -> None:
        """Raises BackendError unless inputs and outputs are exactly the contract's."""
        trt, graph = self._trt, self._graph
        types = {"uint8": trt.uint8, "float32": trt.float32}
        modes = {
            graph.frame: trt.TensorIOMode.INPUT,
            graph.anomaly_map: trt.TensorIOMode.OUTPUT,
            graph.score: trt.TensorIOMode.OUTPUT,
        }
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if sorted(names) != sorted(spec.name for spec in modes):
            raise BackendError(
                f"the engine's tensors are {', '.join(names)}, the contract's {', '.join(spec.name for spec in modes)}",
                remedy=self._remedy,
            )
        for spec, mode in modes.items():
            self._check_tensor(spec, mode, types[spec.dtype])

    def _check_tensor(self, spec: TensorSpec, mode: Any, dtype: Any) -> None:
        shape = tuple(self._engine.get_tensor_shape(spec.name))
        actual = (self._engine.get_tensor_mode(spec.name), self._engine.get_tensor_dtype(spec.name), shape)
        if actual != (mode, dtype, spec.shape):
            raise BackendError(
                f"the engine's tensor {spec.name} is {actual}, the contract says {(mode, dtype, spec.shape)}",
                remedy=self._remedy,
            )

    def layer_information(self) -> str:
        """What the engine's inspector says of every layer, as JSON text."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer; also sets ``device_ms``. Raises BackendError while another frame is under way."""
        if self._under_way:
            raise BackendError("another frame is under way", remedy="finish it first")
        self.start(frame_u8)
        return self.finish()

    @property
    def under_way(self) -> int:
        """See PipelinedBackend.under_way."""
        return len(self._under_way)

    def start(self, frame_u8: NDArray[np.uint8]) -> None:
        """See PipelinedBackend.start."""
        with self._usable():
            check_frame(frame_u8, self._graph.frame)
            if not self._idle:
                raise BackendError(f"{len(self._slots)} frames are under way already", remedy="finish one first")
            self._idle[0].start(frame_u8)
            self._under_way.append(self._idle.popleft())

    def finish(self) -> Prediction:
        """See PipelinedBackend.finish; also sets ``device_ms``."""
        with self._usable():
            if not self._under_way:
                raise BackendError("no frame is under way", remedy="start one first")
            slot = self._under_way.popleft()
            self._idle.append(slot)
            prediction, self.device_ms = slot.finish()
            return prediction

    def parts_ms(self, frame_u8: NDArray[np.uint8]) -> tuple[float, float, float]:
        """Upload, inference and download of one frame by the GPU's clock, for measuring. Raises as ``infer``."""
        with self._usable():
            check_frame(frame_u8, self._graph.frame)
            if self._under_way:
                raise BackendError("another frame is under way", remedy="finish it first")
            return self._idle[0].parts_ms(frame_u8)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """The GPU's context for a while; its errors become ours."""
        if self._device is None:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        if threading.get_ident() != self._thread:
            raise BackendError(
                "the engine was opened by another thread", remedy="open the bundle in the thread that judges"
            )
        try:
            with self._device.current():
                yield
        except (self._device.error, CudaGraphError) as exc:
            raise BackendError(f"inference failed: {exc}", remedy="open the bundle again; see `rdedge doctor`") from exc

    def close(self) -> None:
        """See Backend.close; frames under way are lost. Any thread may do it while no other call runs.

        Raises BackendError where the driver does not even switch to the GPU's context; nothing is freed then.
        """
        if self._device is None:
            return
        try:
            with self._device.current():
                for slot in self._slots:
                    slot.free()
                self._slots.clear()
                self._idle.clear()
                self._under_way.clear()
                self._engine = None  # in this order: each is part of the next
                self._runtime = None
        except self._device.error as exc:
            raise BackendError(f"the engine cannot be closed: {exc}", remedy="end the process") from exc
        self._device = None


def engine_key(
    bundle: Bundle,
    precision: Precision,
    flavour: Flavour,
    workspace_mb: int | None = None,
    dla_core: int | None = None,
) -> EngineKey:
    """What an engine of this precision must have been built for to run here. Raises like TensorRtBackend."""
    version = version_of(load_tensorrt(flavour))
    spec = bundle.precision_spec(precision)
    device = CudaDevice()
    return EngineKey(
        flavour=flavour,
        version=version,
        gpu=device.name,
        compute_capability=device.compute_capability,
        precision=precision,
        onnx_sha256=bundle.contract.files[spec.file],
        workspace_mb=workspace_mb,
        dla_core=dla_core,
    )


def open_engine(
    bundle: Bundle,
    precision: Precision,
    flavour: Flavour,
    *,
    dla_core: int | None = None,
    frames_in_flight: int = 1,
) -> TensorRtBackend:
    """The engine built for this bundle, library, GPU and DLA core, with its refitted thresholds.

    Raises BackendError with the command that builds it, MissingExtraError, UsageError.
    """
    key = engine_key(bundle, precision, flavour, dla_core=dla_core)
    record = read_record(bundle, key)
    backend = TensorRtBackend(
        read_engine(bundle, record),
        bundle.contract.graph,
        flavour,
        remedy=rebuild_command(bundle, key),
        frames_in_flight=frames_in_flight,
        dla_core=dla_core,
    )
    backend.thresholds = (record.image_threshold, record.pixel_threshold)
    return backend
