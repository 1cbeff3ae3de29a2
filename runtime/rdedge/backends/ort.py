"""ONNX Runtime on the CPU: the backend that runs everywhere. The only module that imports onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.backends.base import EXPORT_AGAIN, Prediction, check_frame, check_tensors
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError, MissingExtraError

_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


def open_session(graph: str | bytes) -> Any:
    """A graph, by its path or its bytes, in a session as the line has it.

    Raises MissingExtraError; where ONNX Runtime refuses the graph, what it raises.
    """
    try:
        import onnxruntime as ort
    except ImportError as exc:  # absent, or built for another numpy or libc
        raise MissingExtraError(f"ONNX Runtime cannot be loaded ({exc})", remedy="pip install 'rdedge[cpu]'") from exc
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its warnings go to stderr; its errors reach us as exceptions
    # Its threads wait for work by spinning, by default between two runs too: a core that the next picture needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxRuntimeBackend:
    """Runs one ONNX graph on the CPU."""

    name = "onnxruntime"
    thresholds = None

    def __init__(self, graph_path: Path, graph: GraphSpec):
        """Loads a graph file whose tensors must be those of ``graph``. Raises BackendError, MissingExtraError."""
        try:
            session = open_session(str(graph_path))
        except MissingExtraError:
            raise
        except Exception as exc:  # onnxruntime's exceptions share no base class
            reason = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise BackendError(f"{graph_path}: ONNX Runtime refuses it ({reason})", remedy=EXPORT_AGAIN) from exc
        self._session: Any = session
        self._graph = graph
        self._outputs = [graph.anomaly_map.name, graph.score.name]
        actual = {t.name: (t.type, tuple(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())}
        check_tensors(graph, actual, _TYPES, graph_path)

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer."""
        if self._session is None:
            raise BackendError("the backend is closed", remedy="open the bundle again")
        check_frame(frame_u8, self._graph.frame)
        try:
            anomaly_map, score = self._session.run(self._outputs, {self._graph.frame.name: frame_u8})
        except Exception as exc:  # onnxruntime's exceptions share no base class
            reason = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise BackendError(f"inference failed: {reason}", remedy="run `rdedge info` on the bundle") from exc
        return Prediction(anomaly_map=anomaly_map, score=score)

    def close(self) -> None:
        """See Backend.close."""
        self._session = None
