"""Builds a TensorRT engine from an ONNX graph, with whichever TensorRT or TensorRT-RTX is here; needs nothing else.

What a version can do is found by looking, never by its number, and flags are named, never numbered: the numbers move
between versions (https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-python-api.html).
Precision is in the graph: FP16 casts, or quantise and dequantise nodes. Where networks can be strongly typed
(TensorRT 10 and later) the engine follows it; older builders choose freely among what they are allowed, so they are
allowed what the graph holds and told what must stay FP32
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#strongly-typed-networks).

DLA is the Jetson's accelerator beside the GPU, and every version's module has its names: whether it is there, the
builder's number of cores says. It computes in FP16 or INT8. Up to TensorRT 10 its precision is allowed by flags, and it
takes no quantise and dequantise nodes (https://github.com/NVIDIA/Model-Optimizer/pull/1661); from 11 on it follows
strong types (https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/inference-library/dla-strongly-typed-networks.html).
By https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html it can take the
convolutions, transposed convolutions without padding, clips, ReLUs, additions and products of our networks, and resizes
that repeat pixels; the frame's cast and transpose, and the FP32 judging part (roots, matrix products, the final
maximum) stay on the GPU. Nothing here relies on that list: TensorRT places the layers and the engine is asked.
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
_ON_DLA = "[DlaLayer] "


@dataclass(frozen=True, slots=True)
class Plan:
    """A built engine, not yet looked at."""

    engine: bytes
    is_strongly_typed: bool
    dla_layers: frozenset[str]  # what the builder said it placed on DLA
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
    dla_core: int | None = None,
) -> Plan:
    """Parse and build with the module ``trt``. Raises BackendError with what parser or builder said.

    ``dla_core``: place there what it takes, the rest on the GPU; None: all on the GPU. ``timing_cache`` of another GPU
    or version, or a broken one, is not used. KeyboardInterrupt stops the build.
    """
    log = _BuildLog(trt)
    started_s = time.perf_counter()
    try:
        builder = trt.Builder(log.logger)
    except (TypeError, RuntimeError) as exc:  # how the binding says that the library made nothing
        raise BackendError(f"no engine builder ({log.reason()})", remedy="see what `rdedge doctor` says") from exc
    if dla_core is not None:
        _check_dla(builder, dla_core)
    reason = ""
    for is_strongly_typed in _typings(trt, precision, dla_core):
        network = builder.create_network(_network_flags(trt, is_strongly_typed))
        _parse(trt, network, graph_path, log, is_for_dla=dla_core is not None)
        config = builder.create_builder_config()
        if not is_strongly_typed:
            _allow_precisions(trt, network, config, precision)
        _configure(trt, config, workspace_mb)
        if dla_core is not None:
            _place_on_dla(trt, config, dla_core)
        has_timing = _set_timing_cache(trt, config, timing_cache)
        monitor = _watch(trt, config, progress)
        serialized = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.is_interrupted:
            raise KeyboardInterrupt
        if serialized is not None:
            return Plan(
                engine=bytes(serialized),
                is_strongly_typed=is_strongly_typed,
                dla_layers=frozenset(log.dla_layers),
                timing_cache=bytes(config.get_timing_cache().serialize()) if has_timing else b"",
                build_s=time.perf_counter() - started_s,
            )
        reason = reason or log.reason()
    raise BackendError(
        f"{graph_path}: no engine can be built ({reason})",
        remedy="a small board may need --workspace-mb or swap; else export the bundle again with `rdedge export`",
    )


class _BuildLog(ErrorLog):
    """Also hears where the builder places layers; at which severity it says so differs between versions."""

    def __init__(self, trt: Any):
        super().__init__(trt)
        self.dla_layers: list[str] = []
        found = self.dla_layers

        class Listener(type(self.logger)):  # type: ignore[misc]  # TensorRT comes without types
            def log(self, severity: Any, msg: str) -> None:
                if msg.startswith(_ON_DLA):
                    found.append(msg.removeprefix(_ON_DLA).strip().removesuffix(","))
                super().log(severity, msg)

        self.logger = Listener()


def _check_dla(builder: Any, dla_core: int) -> None:
    cores = builder.num_DLA_cores
    if dla_core >= cores:
        raise BackendError(
            f"no DLA core {dla_core}: this TensorRT offers {cores} on this device",
            remedy="leave out --dla; Jetson Xavier, Orin NX and AGX Orin have DLA cores, Orin Nano, Thor and desktop"
            " GPUs none; TensorRT 10.8 to 11.4.0 and TensorRT-RTX use none",
        )


def _typings(trt: Any, precision: Precision, dla_core: int | None) -> list[bool]:
    """Ways to build, best first: strongly typed or not. The first 10.x do not strongly type every graph."""
    can_be_strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    can_be_weak = hasattr(trt.BuilderFlag, "FP16")
    if dla_core is not None and can_be_weak:
        if precision == "int8":
            raise BackendError(
                "DLA takes no quantise and dequantise nodes in this TensorRT",
                remedy="use --precision fp16, or leave out --dla",
            )
        return [False]
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


def _parse(trt: Any, network: Any, graph_path: Path, log: ErrorLog, *, is_for_dla: bool) -> None:
    """Raises BackendError with every error of the parser."""
    parser = trt.OnnxParser(network, log.logger)
    # From 10.16 on the parser can reshape what DLA would not take as it is; 8.5 has no parser flags at all.
    if is_for_dla and hasattr(getattr(trt, "OnnxParserFlag", None), "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    if not parser.parse_from_file(str(graph_path)):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)] or [log.reason()]
        raise BackendError(f"{graph_path}: the ONNX parser refuses it ({'; '.join(errors)})", remedy=_EXPORT_AGAIN)


def _configure(trt: Any, config: Any, workspace_mb: int | None) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the engine does not tell its layers' types
    config.clear_flag(trt.BuilderFlag.TF32)  # what is FP32 in the graph is meant to be
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)


def _place_on_dla(trt: Any, config: Any, dla_core: int) -> None:
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


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
        self._done_and_steps: dict[str, tuple[int, int]] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if parent_phase is None:
            self._done_and_steps[phase_name] = 0, num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        done, steps = self._done_and_steps.get(phase_name, (0, 0))
        if done < step + 1 < steps:  # several threads report, in no order
            self._done_and_steps[phase_name] = step + 1, steps
            self._tell(phase_name, step + 1, steps)
        return not self.is_interrupted

    def phase_finish(self, phase_name: str) -> None:  # the last step is not always reported
        _, steps = self._done_and_steps.pop(phase_name, (0, 0))
        if steps and not self.is_interrupted:
            self._tell(phase_name, steps, steps)

    def _tell(self, phase_name: str, done: int, steps: int) -> None:
        try:
            self._progress(phase_name, done, steps)
        except KeyboardInterrupt:
            self.is_interrupted = True
