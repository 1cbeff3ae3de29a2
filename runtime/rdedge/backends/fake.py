"""A backend without a model, for tests of lines, sinks and dashboards: dark pixels are anomalous."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import Prediction, check_frame
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError


class FakeBackend:
    """Answers with ``1 - mean(R, G, B) / 255`` at each pixel and its maximum: known without any weights."""

    name = "fake"
    thresholds = None

    def __init__(self, graph: GraphSpec, *, frames_in_flight: int = 1):
        self.frames_in_flight = frames_in_flight
        self._graph = graph
        self._answers: deque[Prediction] = deque()
        self._closed = False

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer."""
        if self._closed:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        check_frame(frame_u8, self._graph.frame)
        n, height, width, _ = frame_u8.shape
        red, green, blue = cv2.split(frame_u8.reshape(n * height, width, 3))  # mean(axis=3) takes ten times as long
        total = red.astype(np.uint16) + green + blue
        darkness = total.astype(np.float32)  # and in place from here: each new array costs more than the arithmetic
        darkness /= np.float32(3.0)
        darkness /= np.float32(255.0)
        np.subtract(np.float32(1.0), darkness, out=darkness)
        anomaly_map = darkness.reshape(n, 1, height, width)
        return Prediction(anomaly_map=anomaly_map, score=anomaly_map.max(axis=(1, 2, 3)))

    @property
    def under_way(self) -> int:
        """See PipelinedBackend.under_way."""
        return len(self._answers)

    def start(self, frame_u8: NDArray[np.uint8]) -> None:
        """See PipelinedBackend.start."""
        if self.under_way == self.frames_in_flight:
            raise BackendError(f"{self.frames_in_flight} frames are under way already", remedy="finish one first")
        self._answers.append(self.infer(frame_u8))

    def finish(self) -> Prediction:
        """See PipelinedBackend.finish."""
        if not self._answers:
            raise BackendError("no frame is under way", remedy="start one first")
        return self._answers.popleft()

    def close(self) -> None:
        """See Backend.close."""
        self._closed = True
