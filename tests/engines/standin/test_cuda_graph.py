"""Replay of a recorded CUDA graph, and the way back where the driver or the engine does not want it."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_kernels import driver, refuse, report
from frame_streams import assert_same_pipeline, assert_same_stream, frames

from rdedge.backends import PipelinedBackend, cuda_graph, open_backend
from rdedge.backends.trt_slot import Slot
from rdedge.bundle import open_bundle
from rdedge.doctor_verb import examine
from rdedge.errors import BackendError


def assert_right(backend: Any, bundle: Path) -> None:
    assert isinstance(backend, PipelinedBackend)
    reference = open_backend(open_bundle(bundle))
    assert_same_stream(backend, reference, 3)
    assert_same_pipeline(backend, reference, 5)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_frame_is_one_launch(in_flight: int, memory: None, built: Any, open_built: Any, engine_bundle: Path) -> None:
    backend = open_built(frames_in_flight=in_flight)
    assert backend.cuda_graph == "replayed"
    before = report()
    backend.infer(next(frames(1)))
    after = report()
    assert after["graph_launches"] == before["graph_launches"] + 1
    calls, old = after["calls_by_name"], before["calls_by_name"]
    assert calls.get("cuMemcpyHtoDAsync_v2", 0) == old.get("cuMemcpyHtoDAsync_v2", 0), "the upload is in the graph"
    assert calls["cuLaunchHostFunc"] == old["cuLaunchHostFunc"], "so is the engine"
    assert_right(backend, engine_bundle)


CALLS = ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_of_the_driver_leads_back_to_plain_frames(
    call: str, in_flight: int, memory: None, pace: None, built: Any, open_built: Any, engine_bundle: Path
) -> None:
    refuse(call, skip=in_flight - 1)  # of the last slot
    backend = open_built(frames_in_flight=in_flight)
    assert backend.cuda_graph.startswith(f"{call} fails: CUDA_ERROR_")
    launches = report()["graph_launches"]
    assert_right(backend, engine_bundle)
    assert report()["graph_launches"] == launches, "none of the slots replays"
    assert backend.device_ms > 0


@pytest.mark.parametrize("call", ["cuGraphDestroy", "cuGraphExecDestroy"])
def test_an_error_on_giving_back_is_not_the_frames(call: str, built: Any, open_built: Any, engine_bundle: Path) -> None:
    refuse(call, count=100)
    backend = open_built()
    assert backend.cuda_graph == "replayed"
    assert_right(backend, engine_bundle)
    backend.close()


def test_an_engine_that_cannot_be_recorded_is_enqueued(
    memory: None, built: Any, open_built: Any, engine_bundle: Path
) -> None:
    built.fails_in_capture = True
    backend = open_built(frames_in_flight=2)
    assert backend.cuda_graph == "inference failed: CUDA error in kernel"
    assert_right(backend, engine_bundle)


def test_an_interrupted_recording_leaves_nothing(
    built: Any, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Slot._enqueue

    def interrupted(slot: Slot) -> None:
        real(slot)
        if built.live and report()["calls_by_name"].get("cuStreamBeginCapture_v2", 0) > started:
            raise KeyboardInterrupt

    started = report()["calls_by_name"].get("cuStreamBeginCapture_v2", 0)
    monkeypatch.setattr(Slot, "_enqueue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
    assert built.live == 0


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("_CALLS", {"cuGraphOfAnotherAge": []}, "the driver has no CUDA graphs .*cuGraphOfAnotherAge"),
        ("_LIBRARY", "libcuda.so.0", "the driver has no CUDA graphs .*libcuda.so.0"),
    ],
)
def test_an_old_driver_is_no_fault(
    attribute: str,
    value: Any,
    reason: str,
    built: Any,
    open_built: Any,
    engine_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph, attribute, value)
    monkeypatch.setattr(cuda_graph, "_driver", cuda_graph._driver.__wrapped__)  # not the one at hand
    backend = open_built()
    assert re.match(reason, backend.cuda_graph), backend.cuda_graph
    assert_right(backend, engine_bundle)


def test_a_launch_that_fails_is_that_frames_error(built: Any, open_built: Any, engine_bundle: Path) -> None:
    backend = open_built()
    refuse("cuGraphLaunch")
    with pytest.raises(BackendError, match=r"inference failed: cuGraphLaunch fails: CUDA_ERROR_INVALID_VALUE; open"):
        backend.infer(next(frames(1)))
    assert backend.cuda_graph == "replayed"
    assert_right(backend, engine_bundle)


def test_another_thread_may_allocate_meanwhile(
    built: Any, open_built: Any, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pycuda.driver as cuda

    real, errors = Slot._enqueue, []

    def allocate(slot: Slot) -> None:
        try:
            with slot._device.current():
                cuda.mem_alloc(64).free()
                cuda.Context.synchronize()
        except cuda.Error as exc:
            errors.append(exc)

    def disturbed(slot: Slot) -> None:
        real(slot)
        thread = threading.Thread(target=allocate, args=(slot,))
        thread.start()
        thread.join()

    monkeypatch.setattr(Slot, "_enqueue", disturbed)
    backend = open_built()
    assert backend.cuda_graph == "replayed" and errors == []
    assert_right(backend, engine_bundle)


def test_work_of_the_default_stream_does_not_spoil_the_recording(
    built: Any, open_built: Any, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pycuda.driver as cuda

    real = Slot._enqueue

    def disturbed(slot: Slot) -> None:
        real(slot)
        cuda.memset_d8_async(scratch, 0, 64)

    with open_built()._device.current():
        scratch = cuda.mem_alloc(64)
        monkeypatch.setattr(Slot, "_enqueue", disturbed)
        assert open_built().cuda_graph == "replayed"
        scratch.free()


def test_doctor_tries_it(memory: None) -> None:
    finding = next(f for f in examine(Path("/")) if f.name == "CUDA graph")
    assert (finding.status, finding.found) == ("ok", "recorded and replayed")
    refuse("cuStreamBeginCapture_v2", count=9)
    finding = next(f for f in examine(Path("/")) if f.name == "CUDA graph")
    assert finding.status == "warning" and "cuStreamBeginCapture_v2 fails" in finding.found
    assert driver().nullcuda_refused(0) == 1
