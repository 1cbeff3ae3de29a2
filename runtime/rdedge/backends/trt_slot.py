"""What one frame under way needs of its own on the GPU: context, buffers, stream, events, and the recorded graph."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import Prediction
from rdedge.backends.cuda import Buffer, CudaDevice
from rdedge.backends.cuda_graph import CudaGraph
from rdedge.backends.trt_library import ErrorLog
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError


class Slot:
    """One execution context of an engine, from a frame to its answer. The GPU's context must be current throughout."""

    def __init__(self, device: CudaDevice, log: ErrorLog, *, remedy: str):
        self.context: Any = None  # whoever has the engine sets it, then calls ``open``
        self._device = device
        self._log = log
        self._remedy = remedy
        self._replay: CudaGraph | None = None
        self._stream: Any = None
        self._started: Any = None
        self._ended: Any = None
        self._marks: list[Any] = []  # events before and after the inference, while a frame is timed in parts
        self._buffers: list[Buffer] = []

    def open(self, graph: GraphSpec) -> None:
        """Raises the driver's error and BackendError; ``free`` then gives back what there is."""
        device = self._device
        self._stream, self._started, self._ended = device.stream(), device.event(), device.event()
        for spec in (graph.frame, graph.anomaly_map, graph.score):
            self._buffers.append(device.buffer(spec))
            if not self.context.set_tensor_address(spec.name, self._buffers[-1].address):
                raise BackendError(f"tensor {spec.name}: {self._log.reason()}", remedy=self._remedy)

    def start(self, frame_u8: NDArray[np.uint8]) -> None:
        """Put a frame under way. Raises the driver's error and BackendError.

        What a failure leaves on the stream does no harm: the next frame's upload and run come after it.
        """
        np.copyto(self._buffers[0].host, frame_u8)
        self._started.record(self._stream)
        if self._replay is not None:
            self._replay.launch(self._stream.handle)
        else:
            self._enqueue()
        self._ended.record(self._stream)

    def finish(self) -> tuple[Prediction, float]:
        """Wait for the frame: its answer, and milliseconds by the GPU's clock. Raises the driver's error."""
        self._stream.synchronize()
        _, anomaly_map, score = (buffer.host for buffer in self._buffers)
        prediction = Prediction(anomaly_map=anomaly_map.copy(), score=score.copy())
        return prediction, float(self._started.time_till(self._ended))

    def parts_ms(self, frame_u8: NDArray[np.uint8]) -> tuple[float, float, float]:
        """Upload, inference and download of one frame by the GPU's clock, enqueued one by one: a recorded graph has no
        events in between. Raises the driver's error and BackendError."""
        replay, self._replay = self._replay, None
        self._marks = [self._device.event(), self._device.event()]
        try:
            self.start(frame_u8)
            self.finish()
            inferring, inferred = self._marks
            return (
                float(self._started.time_till(inferring)),
                float(inferring.time_till(inferred)),
                float(inferred.time_till(self._ended)),
            )
        finally:
            self._marks, self._replay = [], replay

    def record(self) -> None:
        """From now on replay a recorded graph; the frame must have been run once, as TensorRT prescribes.

        Raises CudaGraphError, the driver's error and BackendError; frames are enqueued one by one then, as before.
        Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html, CUDA graphs.
        """
        self._replay = CudaGraph(self._stream.handle, self._enqueue)

    def forget_record(self) -> None:
        """Enqueue frames one by one again; may be called twice."""
        if self._replay is not None:
            self._replay.free()
            self._replay = None

    def _enqueue(self) -> None:
        frame, *outputs = self._buffers
        frame.upload(self._stream)
        for mark in self._marks[:1]:
            mark.record(self._stream)
        if not self.context.execute_async_v3(self._stream.handle):
            raise BackendError(f"inference failed: {self._log.reason()}", remedy=self._remedy)
        for mark in self._marks[1:]:
            mark.record(self._stream)
        for output in outputs:
            output.download(self._stream)

    def free(self) -> None:
        """Wait for what is under way, then give everything back; the slot must not be used afterwards."""
        if self._stream is not None:
            with suppress(self._device.error):  # of a frame nobody will ask for; its memory is given back all the same
                self._stream.synchronize()
        self.forget_record()
        self.context = None
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()
        self._stream = self._started = self._ended = None
