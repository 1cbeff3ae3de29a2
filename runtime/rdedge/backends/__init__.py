"""Engines that run a bundle's graph; ``open_backend`` is the only place that knows them all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from rdedge.backends.base import Backend, PipelinedBackend, Prediction, batches, infer_all
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.errors import UsageError

BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-dla0", "tensorrt-dla1", "tensorrt-rtx", "fake"]

__all__ = [
    "Backend",
    "BackendName",
    "PipelinedBackend",
    "Prediction",
    "batches",
    "engine_arguments",
    "infer_all",
    "open_backend",
]


def engine_arguments(bundle: Path, backend: BackendName, precision: Precision) -> list[str] | None:
    """Arguments of `rdedge` that build the engine which ``open_backend`` will want, or measure it (rdedge.cpu_proof),
    unless it is there; None: it wants none."""
    if not (backend.startswith("tensorrt") or (backend == "openvino" and precision != "fp32")):
        return None
    flavour, _, dla_core = backend.partition("-dla")
    options = ["--precision", precision, "--backend", flavour, "--if-needed"]
    return ["engine", str(bundle), *options, *(["--dla", dla_core] if dla_core else [])]


def open_backend(
    bundle: Bundle, *, backend: BackendName = "onnxruntime", precision: Precision = "fp32", frames_in_flight: int = 1
) -> Backend:
    """Open one precision of a bundle on one engine. Raises BackendError, MissingExtraError, UsageError.

    ``frames_in_flight`` 2 gives a PipelinedBackend; those that run on the CPU are none.
    """
    if frames_in_flight not in ((1,) if backend in ("onnxruntime", "openvino") else (1, 2)):
        raise UsageError(
            f"{frames_in_flight} frames in flight on {backend}", remedy="use 1, or 2 with an engine of TensorRT"
        )
    graph_path = bundle.graph_path(precision)
    if backend == "fake":
        from rdedge.backends.fake import FakeBackend

        return FakeBackend(bundle.contract.graph, frames_in_flight=frames_in_flight)
    if backend == "onnxruntime":
        from rdedge.backends.ort import OnnxRuntimeBackend

        return OnnxRuntimeBackend(graph_path, bundle.contract.graph)
    if backend == "openvino":
        from rdedge.backends.openvino import open_proven

        return open_proven(bundle, precision)
    if backend == "tensorrt" or backend == "tensorrt-rtx":
        from rdedge.backends.trt import open_engine

        return open_engine(bundle, precision, backend, frames_in_flight=frames_in_flight)
    if backend == "tensorrt-dla0" or backend == "tensorrt-dla1":
        from rdedge.backends.trt import open_engine

        return open_engine(bundle, precision, "tensorrt", dla_core=int(backend[-1]), frames_in_flight=frames_in_flight)
    raise UsageError(f"no backend {backend!r}", remedy=f"use one of: {', '.join(get_args(BackendName))}")
