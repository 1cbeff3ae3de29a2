"""Builds a TensorRT engine from an ONNX graph, with whichever TensorRT or TensorRT-RTX is here; needs nothing else.

What a version can do is found by looking, never by its number, and flags are named, never numbered: the numbers move
between versions (https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-python-api.html).
Precision is in the graph: FP16 casts, or quantise and dequantise nodes. Where networks can be strongly typed
(TensorRT 10 and later) the engine follows it; older builders choose freely among what they are allowed, so they are
allowed what the graph holds and told what must stay FP32
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#strongly-typed-networks).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdedge.backends.trt_library import ErrorLog
from rdedge.contract import Precision
from rdedge.errors import BackendError

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all

_EXPORT_AGAIN = "export the bundle again with `rdedge export`, or report this graph and this version"


@dataclass(frozen=True, slots=True)
class Plan:
    """A built engine, not yet looked at."""

    engine: bytes
    is_strongly_typed: bool
    timing_cache: bytes  # to make the next build shorter; empty where the builder times nothing
    build_s: float


def build_plan(
    trt: Any,
    graph_path: Path,
    precision: Precision,
    *,
    workspace_mb: int | None,
    timing_cache: bytes,
    progress: Progress,
) -> Plan:
    """Parse and build with the module ``trt``. Raises BackendError with what parser or builder said.

    ``timing_cache`` of another GPU or version, or a broken one, is not used. KeyboardInterrupt stops the build.
    """
    log = ErrorLog(trt)
    started_s = time.perf_counter()
    try:
        builder = trt.Builder(log.logger)
    except (TypeError, RuntimeError) as exc:  # how the binding says that the library made nothing
        raise BackendError(f"no engine builder ({log.reason()})", remedy="see what `rdedge doctor` says") from exc
    reason = ""
    for is_strongly_typed in _typings(trt):
        network = builder.create_network(_network_flags(trt, is_strongly_typed))
        _parse(trt, network, graph_path, log)
        config = builder.create_builder_config()
        if not is_strongly_typed:
            _allow_precisions(trt, network, config, precision)
        _configure(trt, config, workspace_mb)
        has_timing = _set_timing_cache(trt, config, timing_cache)
        monitor = _watch(trt, config, progress)
        serialized = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.is_interrupted:
            raise KeyboardInterrupt
        if serialized is not None:
            return Plan(
                engine=bytes(serialized),
                is_strongly_typed=is_strongly_typed,
                timing_cache=bytes(config.get_timing_cache().serialize()) if has_timing else b"",
                build_s=time.perf_counter() - started_s,
            )
        reason = reason or log.reason()
    raise BackendError(
        f"{graph_path}: no engine can be built ({reason})",
        remedy="a small board may need --workspace-mb or swap; else export the bundle again with `rdedge export`",
    )


def _typings(trt: Any) -> list[bool]:
    """Ways to build, best first: strongly typed or not. The first 10.x do not strongly type every graph."""
    can_be_strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    can_be_weak = hasattr(trt.BuilderFlag, "FP16")
    return [True] * can_be_strong + [False] * can_be_weak


def _network_flags(trt: Any, is_strongly_typed: bool) -> int:
    """TensorRT 8 makes a network of implicit batch unless told not to, which its ONNX parser refuses."""
    flags = trt.NetworkDefinitionCreationFlag
    value = 0
    if hasattr(flags, "EXPLICIT_BATCH"):
        value |= 1 << int(flags.EXPLICIT_BATCH)
    if is_strongly_typed:
        value |= 1 << int(flags.STRONGLY_TYPED)
    return value


def _parse(trt: Any, network: Any, graph_path: Path, log: ErrorLog) -> None:
    """Raises BackendError with every error of the parser."""
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph_path)):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)] or [log.reason()]
        raise BackendError(f"{graph_path}: the ONNX parser refuses it ({'; '.join(errors)})", remedy=_EXPORT_AGAIN)


def _configure(trt: Any, config: Any, workspace_mb: int | None) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the engine does not tell its layers' types
    config.clear_flag(trt.BuilderFlag.TF32)  # what is FP32 in the graph is meant to be
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)


def _allow_precisions(trt: Any, network: Any, config: Any, precision: Precision) -> None:
    """For builders that are not bound by the graph's types."""
    if precision == "fp32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 10.12 on, where this is the second try
        _hold_fp32(trt, network)


def _hold_fp32(trt: Any, network: Any) -> None:
    """What the graph casts to FP32 stays FP32 up to the next cast or quantisation, and so do its sums and all behind
    them, with the products they add up: squares of features soon leave FP16's range. Layers come in graph order.
    """
    kinds = trt.LayerType
    cast = getattr(kinds, "CAST", kinds.IDENTITY)  # 8.5 has no layer for casts alone
    makers: dict[str, Any] = {}
    held: set[str] = set()
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        inputs = [tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if any(tensor.dtype != trt.float32 for tensor in outputs):
            continue
        names = [tensor.name for tensor in outputs]
        makers |= dict.fromkeys(names, layer)
        sums = layer.type in (kinds.REDUCE, kinds.MATRIX_MULTIPLY)
        if layer.type == cast:
            held.update(names)
        elif sums or held.intersection(inputs):
            held.update(names)
            _hold(trt, layer)
        if layer.type == kinds.REDUCE:
            for maker in (makers[name] for name in inputs if name in makers):
                if maker.type == kinds.ELEMENTWISE:
                    _hold(trt, maker)


def _hold(trt: Any, layer: Any) -> None:
    layer.precision = trt.float32
    for i in range(layer.num_outputs):
        layer.set_output_type(i, trt.float32)


def _set_timing_cache(trt: Any, config: Any, saved: bytes) -> bool:
    """Whether the builder keeps one. TensorRT-RTX chooses kernels when an engine is loaded: nothing to time here."""
    if trt.__name__ == "tensorrt_rtx":
        return False
    cache = config.create_timing_cache(saved)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return True


def _watch(trt: Any, config: Any, progress: Progress) -> Any:
    """Report the build's outermost phase, from TensorRT 10 on. The monitor must live as long as ``config``."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(_Outermost, trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT comes without types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            _Outermost.__init__(self, progress)

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


class _Outermost:
    """TensorRT's progress callbacks, of which only the outermost phase is passed on.

    Nothing may be raised into the builder's C++, so Ctrl-C is kept until it has stopped.
    """

    def __init__(self, progress: Progress):
        self.is_interrupted = False
        self._progress = progress
        self._steps_of: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if parent_phase is None:
            self._steps_of[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        steps = self._steps_of.get(phase_name, 0)
        if step + 1 < steps:
            self._tell(phase_name, step + 1, steps)
        return not self.is_interrupted

    def phase_finish(self, phase_name: str) -> None:  # the last step is not always reported
        steps = self._steps_of.pop(phase_name, 0)
        if steps and not self.is_interrupted:
            self._tell(phase_name, steps, steps)

    def _tell(self, phase_name: str, done: int, steps: int) -> None:
        try:
            self._progress(phase_name, done, steps)
        except KeyboardInterrupt:
            self.is_interrupted = True
