"""Host time per frame around the engine call at 256x256: plain, replayed as a CUDA graph, two frames in flight.

Where there is a GPU with TensorRT: wall time of a frame less the GPU's own time of copies and inference. Elsewhere real
pycuda and the real backend run on the stand-in driver and TensorRT of the tests, once with memory of its own and once
shared with the CPU: wall time less what the engine takes. Copies, which a GPU would make, are then in the host's time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import trt_slot
from rdedge.backends.cuda import CudaDevice
from rdedge.backends.cuda_graph import CudaGraphError
from rdedge.backends.trt import TensorRtBackend
from rdedge.backends.trt_library import load_tensorrt, version_of
from rdedge.errors import BackendError, MissingExtraError
from rdedge_export.engine import build_plan
from rdedge_export.graph import graph_spec
from results_file import write_results

SIZE_HW = (256, 256)
WARM_UP = 100
TESTS = Path(__file__).parents[1] / "tests"
Clock = Callable[[], float]  # seconds that the engine has taken so far
Figures = dict[str, dict[str, float]]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2000, help="frames of each way (%(default)s)")
    parser.add_argument("--standin", type=Path, help=argparse.SUPPRESS)  # the child's: print figures as JSON
    args = parser.parse_args()
    if args.standin is not None:
        print(json.dumps(measure_standin(args.standin, args.frames)))
    elif (gpu := usable_gpu()) is not None:
        report(f"{gpu}, TensorRT {version_of(load_tensorrt('tensorrt'))}", {gpu: measure_gpu(args.frames)}, args.frames)
    else:
        report(
            "no GPU: stand-in driver and TensorRT of the tests, real pycuda", standin_figures(args.frames), args.frames
        )


def usable_gpu() -> str | None:
    """The GPU's name if this machine can run TensorRT."""
    try:
        load_tensorrt("tensorrt")
        return CudaDevice().name
    except (BackendError, MissingExtraError):
        return None


def standin_figures(frames: int) -> dict[str, Figures]:
    """Each memory in a process of its own, whose CUDA driver is the stand-in."""
    command = ["bash", str(TESTS / "cuda_standin" / "build.sh"), sys.executable]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    figures = {}
    for memory, changes in {
        "memory of its own": {},
        "memory shared with the CPU": {"NULLCUDA_INTEGRATED": "1"},
    }.items():
        environment = os.environ | {"LD_LIBRARY_PATH": f"{built}/lib"} | changes
        command = [sys.executable, __file__, "--standin", built, "--frames", str(frames)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures[memory] = json.loads(done.stdout)
    return figures


def measure_standin(built: Path, frames: int) -> Figures:
    """Runs in the child. In a plain frame the engine's time is that of its call, in a replayed one of its kernels."""
    sys.path += [str(TESTS / "engines"), str(built / "site")]
    fake_tensorrt, parts = (importlib.import_module(name) for name in ("fake_tensorrt", "fake_tensorrt_parts"))
    trt: Any = fake_tensorrt.make_module("10.3.0")
    sys.modules["tensorrt"] = trt
    in_calls_s = 0.0
    call = parts.IExecutionContext.execute_async_v3

    def timed(context: Any, stream_handle: int) -> bool:
        nonlocal in_calls_s
        started = time.perf_counter()
        is_queued = bool(call(context, stream_handle))
        in_calls_s += time.perf_counter() - started
        return is_queued

    parts.IExecutionContext.execute_async_v3 = timed
    return measure(trt, frames, lambda _: lambda: in_calls_s, lambda _: lambda: trt.fake.kernel_s)


def measure_gpu(frames: int) -> Figures:
    """By the GPU's clock; with two frames in flight it works on one while the host works on the other."""

    def clock(backend: TensorRtBackend) -> Clock:
        total_s, finish = 0.0, backend.finish

        def counted() -> Any:
            nonlocal total_s
            prediction = finish()
            total_s += backend.device_ms * 1e-3
            return prediction

        backend.finish = counted  # type: ignore[method-assign]
        return lambda: total_s

    return measure(load_tensorrt("tensorrt"), frames, clock, clock)


def measure(trt: Any, frames: int, plain_clock: Callable[[Any], Clock], graph_clock: Callable[[Any], Clock]) -> Figures:
    """Milliseconds of host time per frame, the three ways in turn so that all meet the same noise."""
    engine = tiny_engine(trt)
    frame_u8 = np.random.default_rng(0).integers(0, 256, (1, *SIZE_HW, 3), dtype=np.uint8)
    times_ms: dict[str, list[float]] = {}
    with ExitStack() as stack:
        with mock.patch.object(trt_slot, "CudaGraph", side_effect=CudaGraphError("not asked for")):
            plain = stack.enter_context(closing(open_tiny(engine, 1)))
        graph, two = (stack.enter_context(closing(open_tiny(engine, n))) for n in (1, 2))

        def next_of_two(frame_u8: NDArray[np.uint8]) -> object:
            two.start(frame_u8)
            return two.finish()

        ways: dict[str, tuple[Clock, Callable[[NDArray[np.uint8]], object]]] = {
            "plain": (plain_clock(plain), lambda frame_u8: plain.infer(frame_u8)),
            f"CUDA graph {graph.cuda_graph}": (graph_clock(graph), lambda frame_u8: graph.infer(frame_u8)),
            "the same, two in flight": (graph_clock(two), next_of_two),
        }
        two.start(frame_u8)
        for index in range(WARM_UP + frames):
            for name, (engine_s, run) in ways.items():
                engine_before, started = engine_s(), time.perf_counter()
                run(frame_u8)
                host_s = time.perf_counter() - started - (engine_s() - engine_before)
                if index >= WARM_UP:
                    times_ms.setdefault(name, []).append(host_s * 1e3)
        two.finish()
    return {
        name: dict(zip(("median_ms", "p95_ms"), np.percentile(ms, [50, 95]), strict=True))
        for name, ms in times_ms.items()
    }


def tiny_engine(trt: Any) -> bytes:
    """An engine whose work is next to nothing: what is left is the host's."""
    sys.path.append(str(TESTS / "engines"))
    graphs = importlib.import_module("engine_graphs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(graphs.tiny_graph("fp32", SIZE_HW))
        return build_plan(trt, path, "fp32", workspace_mb=None, timing_cache=b"", progress=lambda *step: None).engine


def open_tiny(engine: bytes, frames_in_flight: int) -> TensorRtBackend:
    """The backend as the line opens it."""
    return TensorRtBackend(
        engine, graph_spec(SIZE_HW), "tensorrt", remedy="build it again", frames_in_flight=frames_in_flight
    )


def report(device: str, figures: dict[str, Figures], frames: int) -> None:
    """A row a way."""
    rows = [
        f"Host time per frame around the engine call, 256x256, {frames} frames of each way in turn. Device: {device}.",
        "",
        "| device's memory | way | median ms | p95 ms |",
        "|---|---|---|---|",
    ]
    for memory, ways in figures.items():
        rows += [f"| {memory} | {way} | {ms['median_ms']:.3f} | {ms['p95_ms']:.3f} |" for way, ms in ways.items()]
    write_results("engine_overhead", "\n".join(rows), {"device": device, **figures}, ("numpy", "onnxruntime"))


if __name__ == "__main__":
    main()
