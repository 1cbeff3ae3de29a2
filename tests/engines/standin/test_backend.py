"""The TensorRT backend: its answers are ONNX Runtime's to the bit, and it leaves nothing behind, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_kernels import report
from frame_streams import assert_same_stream, frames
from msgspec.structs import replace

from rdedge import Inspector
from rdedge.backends import open_backend
from rdedge.backends.cuda import _primary_context
from rdedge.backends.trt import TensorRtBackend
from rdedge.bundle import open_bundle
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError
from rdedge.frames import Frame
from rdedge.stream import Stream

FLAVOUR = {True: "tensorrt-rtx", False: "tensorrt"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_stream_equals_onnx_runtimes_on_every_version(
    trt: Any, precision: Any, engine_bundle: Path, build: Any, open_built: Any
) -> None:
    flavour = FLAVOUR[trt.fake.is_rtx]
    record = build(precision, flavour)
    reference = open_backend(open_bundle(engine_bundle), precision=precision)
    backend = open_built(precision, flavour)
    assert backend.name == flavour and backend.thresholds == (record.image_threshold, record.pixel_threshold)
    assert_same_stream(backend, reference, 20)
    assert backend.device_ms > 0


@pytest.mark.parametrize("in_flight", [1, 2])
def test_500_verdicts_equal_onnx_runtimes(
    in_flight: int, memory: None, pace: None, install_tensorrt: Any, engine_bundle: Path, build: Any
) -> None:
    compare_verdicts(500, in_flight, install_tensorrt, engine_bundle, build)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 2])
def test_10000_verdicts_equal_onnx_runtimes(
    in_flight: int, memory: None, install_tensorrt: Any, engine_bundle: Path, build: Any
) -> None:
    compare_verdicts(10_000, in_flight, install_tensorrt, engine_bundle, build)


class Pictures:
    """A source of good and bad parts; one of them over and over would not show a frame that was mixed up."""

    name = "pictures"
    skipped = ()

    def __init__(self, count: int):
        self._count = count

    def __iter__(self) -> Iterator[Frame]:
        for index, frame in enumerate(frames(self._count)):
            picture = frame[0] // 16 + 235 if index % 3 else frame[0]
            yield Frame(image_bgr_u8=picture, index=index, captured_at_s=0.0, source=str(index))

    def close(self) -> None:
        pass


def compare_verdicts(count: int, in_flight: int, install: Any, bundle: Path, build: Any) -> None:
    install("10.3.0")
    record = build("fp16")
    limit = record.image_threshold.value
    launched = report()["graph_launches"]
    verdicts = []
    with (
        Inspector.open(bundle, backend="tensorrt", precision="fp16", frames_in_flight=in_flight) as inspector,
        Inspector.open(bundle, precision="fp16", threshold=limit) as reference,
    ):
        assert inspector.threshold == limit, "the engine's own, not the contract's"
        reference._pixel_threshold = record.pixel_threshold.value
        for inspection in inspector.inspect_stream(Stream(Pictures(count))):
            assert inspection.frame.index == len(verdicts)
            got, expected = inspection.verdict, reference.inspect(inspection.frame.image_bgr_u8)
            assert (got.score, got.is_anomalous, got.regions) == (
                expected.score,
                expected.is_anomalous,
                expected.regions,
            )
            assert got.anomaly_map.tobytes() == expected.anomaly_map.tobytes()
            verdicts.append(got.is_anomalous)
    assert len(verdicts) == count and set(verdicts) == {True, False}
    assert report()["graph_launches"] - launched == count + in_flight, "and one each while opening"


def test_engines_live_side_by_side_and_close_in_any_order(
    built: Any, build: Any, open_built: Any, engine_bundle: Path
) -> None:
    build("int8")
    first, second, third = open_built(), open_built("int8"), open_built()
    references = [open_backend(open_bundle(engine_bundle), precision=p) for p in ("fp32", "int8")]  # type: ignore
    assert_same_stream(first, references[0], 3)
    assert_same_stream(second, references[1], 3)
    first.close()
    assert_same_stream(third, references[0], 3)
    third.close()
    assert_same_stream(second, references[1], 3)


def test_another_thread_is_refused_but_may_close(built: Any, open_built: Any) -> None:
    backend = open_built()
    caught: list[BackendError] = []

    def use() -> None:
        try:
            backend.infer(next(frames(1)))
        except BackendError as exc:
            caught.append(exc)
        backend.close()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert str(caught[0]) == "the engine was opened by another thread; open the bundle in the thread that judges"
    with pytest.raises(BackendError, match="the backend is closed; open the bundle again"):
        backend.infer(next(frames(1)))


def test_a_closed_backend_says_so_and_closes_again(built: Any, open_built: Any) -> None:
    backend = open_built()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.infer(next(frames(1)))


def test_another_frame_is_refused(built: Any, open_built: Any) -> None:
    with pytest.raises(BackendError, match=r"the engine expects uint8 \(1, 32, 48, 3\)"):
        open_built().infer(np.zeros((1, 48, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (True, "inference failed: cuStreamSynchronize failed: .*; open the bundle again; see `rdedge doctor`"),
        (False, "inference failed: CUDA error in kernel; build it here with `rdedge engine"),
    ],
)
def test_a_frame_that_fails_raises_and_the_next_one_is_right(
    recorded: bool, message: str, built: Any, open_built: Any, engine_bundle: Path
) -> None:
    built.fails_in_capture = not recorded
    backend = open_built()
    built.fails_on_frame = True
    with pytest.raises(BackendError, match=message):
        backend.infer(next(frames(1)))
    built.fails_on_frame = False
    assert_same_stream(backend, open_backend(open_bundle(engine_bundle)), 3, seed=2)


def test_an_answer_is_not_overwritten_by_the_next(built: Any, open_built: Any) -> None:
    backend = open_built()
    first = backend.infer(next(frames(1)))
    kept = first.anomaly_map.copy()
    backend.infer(next(frames(1, seed=5)))
    assert (first.anomaly_map == kept).all()


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ("refuses_context", r"tensorrt cannot set the engine up \(out of memory\); close what else uses the GPU"),
        ("refuses_addresses", r"tensor frame: no address for frame; build it here with `rdedge engine"),
    ],
)
def test_a_failure_while_opening_leaves_nothing(built: Any, engine_bundle: Path, switch: str, message: str) -> None:
    setattr(built, switch, True)
    with pytest.raises(BackendError, match=message) as caught:
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
    assert built.live == 0, f"freed before the error was handled, not when {caught} goes"


CALLS = [("mem_alloc", 3), ("pagelocked_empty", 3), ("Event", 2), ("Stream", 1)]


@pytest.mark.parametrize(
    ("call", "at"), [(name, at) for name, times in CALLS for at in range(times)], ids=lambda value: str(value)
)
def test_running_out_of_memory_at_any_place_leaves_nothing(
    built: Any, engine_bundle: Path, call: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pycuda.driver as cuda

    real, calls = getattr(cuda, call), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(call)
        if len(calls) == at + 1:
            raise cuda.MemoryError("out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(cuda, call, fail)
    with pytest.raises(BackendError, match=r"the GPU refuses the engine \(out of memory\)"):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
    assert built.live == 0


def test_a_driver_error_on_a_frame_is_a_backend_error(
    built: Any, open_built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pycuda.driver as cuda

    built.fails_in_capture = True
    backend = open_built()

    def fail(*_: Any) -> None:
        raise cuda.LaunchError("unspecified launch failure")

    monkeypatch.setattr(cuda, "memcpy_htod_async", fail)
    with pytest.raises(BackendError, match="inference failed: unspecified launch failure; open the bundle again"):
        backend.infer(next(frames(1)))


def test_a_machine_without_gpu_says_so(built: Any, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pycuda.driver as cuda

    def fail(*_: Any) -> None:
        raise cuda.RuntimeError("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(cuda, "init", fail)
    monkeypatch.setattr("rdedge.backends.cuda._primary_context", _primary_context.__wrapped__)  # not the one at hand
    with pytest.raises(
        BackendError, match=r"no usable NVIDIA GPU \(.*no CUDA-capable device.*\); see what `rdedge doctor`"
    ):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")


@pytest.mark.parametrize("field", ["name", "dtype", "shape", "input for output"])
def test_an_engine_with_other_tensors_is_refused(built: Any, engine_bundle: Path, field: str) -> None:
    graph = open_bundle(engine_bundle).contract.graph
    changed: GraphSpec = {
        "name": replace(graph, score=replace(graph.score, name="other")),
        "dtype": replace(graph, frame=replace(graph.frame, name="score"), score=replace(graph.score, name="frame")),
        "shape": graph_of_width(graph, 64),
        "input for output": replace(
            graph, anomaly_map=replace(graph.anomaly_map, name="frame"), frame=replace(graph.frame, name="anomaly_map")
        ),
    }[field]
    engine = next((engine_bundle / "engines").glob("*.engine")).read_bytes()
    with pytest.raises(BackendError, match=r"the engine's tensor.*; build it"):
        TensorRtBackend(engine, changed, "tensorrt", remedy="build it")
    assert built.live == 0


def graph_of_width(graph: GraphSpec, width: int) -> GraphSpec:
    height = graph.frame.shape[1]
    return replace(
        graph,
        frame=replace(graph.frame, shape=(1, height, width, 3)),
        anomaly_map=replace(graph.anomaly_map, shape=(1, 1, height, width)),
    )
