"""Engines that run a bundle's graph; ``open_backend`` is the only place that knows them all."""

from __future__ import annotations

from typing import Literal, get_args

from rdedge.backends.base import Backend, Prediction
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.errors import UsageError

BackendName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "fake"]

__all__ = ["Backend", "BackendName", "Prediction", "open_backend"]


def open_backend(bundle: Bundle, *, backend: BackendName = "onnxruntime", precision: Precision = "fp32") -> Backend:
    """Open one precision of a bundle on one engine. Raises BackendError, MissingExtraError, UsageError."""
    graph_path = bundle.graph_path(precision)
    if backend == "fake":
        from rdedge.backends.fake import FakeBackend

        return FakeBackend(bundle.contract.graph)
    if backend == "onnxruntime":
        from rdedge.backends.ort import OnnxRuntimeBackend

        return OnnxRuntimeBackend(graph_path, bundle.contract.graph)
    if backend == "tensorrt" or backend == "tensorrt-rtx":
        from rdedge.backends.trt import open_engine

        return open_engine(bundle, precision, backend)
    raise UsageError(f"no backend {backend!r}", remedy=f"use one of: {', '.join(get_args(BackendName))}")
