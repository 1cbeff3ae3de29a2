"""Two frames under way at a time: in order, each with its own answer, whatever happens to the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_kernels import driver, refuse
from frame_streams import assert_same, assert_same_pipeline, assert_same_stream, frames

from rdedge.backends import PipelinedBackend, open_backend
from rdedge.bundle import open_bundle
from rdedge.errors import BackendError, UsageError


@pytest.fixture(params=["recorded", "plain"])
def engine(request: pytest.FixtureRequest, built: Any) -> Any:
    """An engine that is replayed as a CUDA graph, or enqueued frame by frame."""
    built.fails_in_capture = request.param == "plain"
    return built


def test_answers_come_in_order_on_every_version(trt: Any, engine_bundle: Path, build: Any, open_built: Any) -> None:
    flavour = "tensorrt-rtx" if trt.fake.is_rtx else "tensorrt"
    build("int8", flavour)
    backend = open_built("int8", flavour, frames_in_flight=2)
    assert isinstance(backend, PipelinedBackend) and backend.frames_in_flight == 2
    assert_same_pipeline(backend, open_backend(open_bundle(engine_bundle), precision="int8"), 20)


def test_slots_share_nothing(engine: Any, memory: None, pace: None, open_built: Any, engine_bundle: Path) -> None:
    backend, reference = open_built(frames_in_flight=2), open_backend(open_bundle(engine_bundle))
    assert_same_pipeline(backend, reference, 40)
    assert_same_stream(backend, reference, 5, seed=2)
    assert_same_pipeline(backend, reference, 5, seed=3)


def test_an_answer_is_not_overwritten_by_later_frames(engine: Any, memory: None, open_built: Any) -> None:
    backend = open_built(frames_in_flight=2)
    first, second, third = frames(3)
    backend.start(first)
    backend.start(second)
    got = backend.finish()
    kept = got.anomaly_map.copy(), got.score.copy()
    backend.start(third)
    backend.finish()
    backend.finish()
    assert (got.anomaly_map == kept[0]).all() and (got.score == kept[1]).all()


def test_a_frame_that_fails_leaves_the_next_one_whole(
    engine: Any, memory: None, open_built: Any, engine_bundle: Path
) -> None:
    backend, reference = open_built(frames_in_flight=2), open_backend(open_bundle(engine_bundle))
    for bad, good in zip(frames(3), frames(3, seed=2), strict=True):
        backend.start(bad)
        backend.start(good)
        engine.fails_on_frame = True  # on the GPU: told where the answer is asked for
        with pytest.raises(BackendError, match=r"inference failed: cuStreamSynchronize failed: .*LAUNCH_FAILED"):
            backend.finish()
        engine.fails_on_frame = False
        assert_same(backend.finish(), reference.infer(good))


def test_a_frame_that_cannot_be_started_leaves_the_one_before_whole(
    engine: Any, memory: None, open_built: Any, engine_bundle: Path
) -> None:
    backend, reference = open_built(frames_in_flight=2), open_backend(open_bundle(engine_bundle))
    first, second, third = frames(3)
    backend.start(first)
    refuse("cuGraphLaunch" if backend.cuda_graph == "replayed" else "cuEventRecord", skip=0)
    with pytest.raises(BackendError, match="inference failed: cu"):
        backend.start(second)
    with pytest.raises(BackendError, match="the engine expects uint8"):
        backend.start(np.zeros((1, 48, 32, 3), np.uint8))
    backend.start(third)
    assert_same(backend.finish(), reference.infer(first))
    assert_same(backend.finish(), reference.infer(third))
    assert_same_pipeline(backend, reference, 5, seed=2)


def test_what_is_out_of_turn_is_refused(engine: Any, open_built: Any, engine_bundle: Path) -> None:
    backend = open_built(frames_in_flight=2)
    first, second, third = frames(3)
    with pytest.raises(BackendError, match="no frame is under way; start one first"):
        backend.finish()
    backend.start(first)
    with pytest.raises(BackendError, match="another frame is under way; finish it first"):
        backend.infer(second)
    backend.start(second)
    with pytest.raises(BackendError, match="2 frames are under way already; finish one first"):
        backend.start(third)
    reference = open_backend(open_bundle(engine_bundle))
    assert_same(backend.finish(), reference.infer(first))
    assert_same(backend.finish(), reference.infer(second))


@pytest.mark.parametrize("under_way", [1, 2])
@pytest.mark.parametrize("by", ["itself", "another thread"])
def test_closing_with_frames_under_way_leaves_nothing(
    by: str, under_way: int, engine: Any, memory: None, pace: None, open_built: Any
) -> None:
    backend = open_built(frames_in_flight=2)
    for frame in frames(under_way):
        backend.start(frame)
    if by == "itself":
        backend.close()
    else:
        thread = threading.Thread(target=backend.close)
        thread.start()
        thread.join()
    assert engine.live == 0
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.finish()


def test_another_thread_is_refused_in_both_halves(engine: Any, open_built: Any, engine_bundle: Path) -> None:
    backend, caught = open_built(frames_in_flight=2), []
    frame = next(frames(1))
    backend.start(frame)

    def use() -> None:
        for call in (lambda: backend.start(frame), backend.finish):
            with pytest.raises(BackendError, match="the engine was opened by another thread"):
                call()
            caught.append(call)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 2
    assert_same(backend.finish(), open_backend(open_bundle(engine_bundle)).infer(frame))


def test_onnx_runtime_takes_one_frame_at_a_time(engine_bundle: Path) -> None:
    with pytest.raises(UsageError, match="2 frames in flight on onnxruntime; use 1, or 2 with an engine of TensorRT"):
        open_backend(open_bundle(engine_bundle), frames_in_flight=2)
    with pytest.raises(UsageError, match="3 frames in flight on tensorrt"):
        open_backend(open_bundle(engine_bundle), backend="tensorrt", frames_in_flight=3)


def test_a_close_that_the_driver_stops_can_be_repeated(built: Any, memory: None, open_built: Any) -> None:
    backend = open_built(frames_in_flight=2)
    backend.start(next(frames(1)))
    refuse("cuCtxPushCurrent_v2")
    with pytest.raises(BackendError, match=r"the engine cannot be closed: cuCtxPushCurrent failed.*; end the process"):
        backend.close()
    backend.close()
    assert built.live == 0


def use_everything(bundle: Path) -> int:
    """Opens, has two frames under way, judges some more and closes; the number of errors on the way."""
    reference = open_backend(open_bundle(bundle))
    errors = 0
    try:
        backend: Any = open_backend(open_bundle(bundle), backend="tensorrt", frames_in_flight=2)
    except BackendError:
        return 1
    try:
        under_way = []
        for frame in frames(3):
            try:
                backend.start(frame)
                under_way.append(frame)
            except BackendError:
                errors += 1
            while len(under_way) == 2 or (under_way and frame is under_way[-1] and errors):
                errors += not answers_rightly(backend.finish, reference.infer(under_way.pop(0)))
        while under_way:
            errors += not answers_rightly(backend.finish, reference.infer(under_way.pop(0)))
        frame = next(frames(1, seed=9))
        errors += not answers_rightly(lambda: backend.infer(frame), reference.infer(frame))
    finally:
        try:
            backend.close()
        except BackendError:
            errors += 1
    return errors


def answers_rightly(ask: Any, expected: Any) -> bool:
    """False for an error; an answer must be the right one."""
    try:
        got = ask()
    except BackendError:
        return False
    assert_same(got, expected)
    return True


@pytest.mark.parametrize("count", [1, 10_000], ids=["one call", "all calls from then on"])
def test_a_driver_that_refuses_any_call_leaves_nothing_and_no_wrong_answer(
    count: int, engine: Any, memory: None, engine_bundle: Path
) -> None:
    refuse("*", skip=10_000)
    assert use_everything(engine_bundle) == 0
    calls = driver().nullcuda_refused(1)
    assert calls > 60
    told = 0
    for at in range(calls):
        refuse("*", skip=at, count=count)
        told += use_everything(engine_bundle) > 0
        refuse("")
        assert engine.live == 0, f"call {at}"
    assert told > calls // 3
