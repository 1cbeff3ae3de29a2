"""TensorRT and TensorRT-RTX: runs an engine that `rdedge engine` built on this device.

Named tensors and ``execute_async_v3`` only, which every TensorRT since 8.5 has
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import Prediction, check_frame
from rdedge.backends.cuda import Buffer, CudaDevice
from rdedge.backends.trt_library import ErrorLog, load_tensorrt, version_of
from rdedge.bundle import Bundle
from rdedge.contract import GraphSpec, Precision, TensorSpec, Threshold
from rdedge.engines import EngineKey, Flavour, read_engine, read_record, rebuild_command
from rdedge.errors import BackendError


class TensorRtBackend:
    """One engine with its context, buffers and stream. One thread uses it: the one that opened it."""

    def __init__(self, engine: bytes, graph: GraphSpec, flavour: Flavour, *, remedy: str):
        """Loads a serialized engine whose tensors must be those of ``graph``.

        Raises BackendError with ``remedy`` if it cannot, MissingExtraError. Nothing stays allocated then.
        """
        self.name: str = flavour
        self.thresholds: tuple[Threshold, Threshold] | None = None
        self.device_ms = 0.0  # of the last frame: copies and inference by the GPU's clock
        self._graph = graph
        self._remedy = remedy
        self._thread = threading.get_ident()
        self._buffers: dict[str, Buffer] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream: Any = None
        self._started: Any = None
        self._ended: Any = None
        self._trt = load_tensorrt(flavour)
        self._log = ErrorLog(self._trt)
        self._device: CudaDevice | None = CudaDevice()
        try:
            with self._device.current():
                self._open(self._device, engine)
        except self._device.error as exc:
            self.close()
            raise BackendError(f"the GPU refuses the engine ({exc})", remedy="close what else uses the GPU") from exc
        except BaseException:
            self.close()
            raise

    def _open(self, device: CudaDevice, engine: bytes) -> None:
        """Every object goes into an attribute at once, so that ``close`` frees what a failure leaves."""
        trt, graph = self._trt, self._graph
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(f"{self.name} refuses the engine ({self._log.reason()})", remedy=self._remedy)
        self._check_tensors()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"{self.name} cannot set the engine up ({self._log.reason()})",
                remedy="close what else uses the GPU",
            )
        self._stream, self._started, self._ended = device.stream(), device.event(), device.event()
        for spec in (graph.frame, graph.anomaly_map, graph.score):
            buffer = self._buffers[spec.name] = device.buffer(spec)
            if not self._context.set_tensor_address(spec.name, buffer.address):
                raise BackendError(f"tensor {spec.name}: {self._log.reason()}", remedy=self._remedy)

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
        """See Backend.infer; also sets ``device_ms``."""
        if self._device is None:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        if threading.get_ident() != self._thread:
            raise BackendError(
                "the engine was opened by another thread", remedy="open the bundle in the thread that judges"
            )
        check_frame(frame_u8, self._graph.frame)
        try:
            with self._device.current():
                return self._run(frame_u8)
        except self._device.error as exc:
            raise BackendError(f"inference failed: {exc}", remedy="open the bundle again; see `rdedge doctor`") from exc

    def _run(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        frame = self._buffers[self._graph.frame.name]
        outputs = [self._buffers[spec.name] for spec in (self._graph.anomaly_map, self._graph.score)]
        np.copyto(frame.host, frame_u8)
        self._started.record(self._stream)
        frame.upload(self._stream)
        is_queued = self._context.execute_async_v3(self._stream.handle)
        for output in outputs:
            output.download(self._stream)
        self._ended.record(self._stream)
        self._stream.synchronize()  # also after a refusal: nothing may be under way when the next frame comes
        if not is_queued:
            raise BackendError(f"inference failed: {self._log.reason()}", remedy=self._remedy)
        self.device_ms = float(self._started.time_till(self._ended))
        anomaly_map, score = (output.host.copy() for output in outputs)
        return Prediction(anomaly_map=anomaly_map, score=score)

    def close(self) -> None:
        """See Backend.close; any thread may do it once no frame is under way."""
        if self._device is None:
            return
        with self._device.current():
            self._context = None  # in this order: each is part of the next
            self._engine = None
            self._runtime = None
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
            self._stream = self._started = self._ended = None
        self._device = None


def engine_key(bundle: Bundle, precision: Precision, flavour: Flavour, workspace_mb: int | None = None) -> EngineKey:
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
    )


def open_engine(bundle: Bundle, precision: Precision, flavour: Flavour) -> TensorRtBackend:
    """The engine built for this bundle, library and GPU, with its refitted thresholds.

    Raises BackendError with the command that builds it, MissingExtraError, UsageError.
    """
    key = engine_key(bundle, precision, flavour)
    record = read_record(bundle, key)
    backend = TensorRtBackend(
        read_engine(bundle, record), bundle.contract.graph, flavour, remedy=rebuild_command(bundle, key)
    )
    backend.thresholds = (record.image_threshold, record.pixel_threshold)
    return backend
