"""Every backend gives the known answer of the tiny model, and refuses what is not the contract's frame."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from rdedge.backends import Backend, PipelinedBackend, batches, infer_all, open_backend
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.bundle import open_bundle
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError, UsageError

FRAME = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(params=["onnxruntime", "openvino", "fake"])
def backend(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Backend]:
    opened = open_backend(open_bundle(bundle), backend=request.param)
    assert opened.name == request.param
    yield opened
    opened.close()


def test_the_answer_is_the_known_one(backend: Backend) -> None:
    prediction = backend.infer(FRAME)
    expected = 1.0 - FRAME.astype(np.float64).mean(axis=3) / 255.0
    assert (prediction.anomaly_map.shape, prediction.anomaly_map.dtype) == ((1, 1, 48, 64), np.float32)
    assert (prediction.score.shape, prediction.score.dtype) == ((1,), np.float32)
    np.testing.assert_allclose(prediction.anomaly_map[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(prediction.score, expected.max(), atol=1e-6)


def test_no_thread_is_busy_between_two_frames(tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np; from rdedge.backends.ort import open_session\n"
        "session = open_session(sys.argv[1])\n"
        "for _ in range(3): session.run(None, {'x': np.zeros((512, 512), np.float32)})\n"
        "def busy_s():\n"
        "    session.run(None, {'x': np.zeros((512, 512), np.float32)})\n"
        "    before_s = time.process_time(); time.sleep(0.2)\n"
        "    return time.process_time() - before_s\n"
        "print(min(busy_s() for _ in range(5)))"  # what interrupts the process now and then is charged to it too
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [512, 512])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [512, 512])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "parallel", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # NumPy's own pool is not meant
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 0.01


@pytest.mark.parametrize("name", ["onnxruntime", "fake"])
@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_any_number_of_frames_gets_as_many_answers(write_bundle: Callable[..., Path], name: str, count: int) -> None:
    frames_u8 = np.random.default_rng(1).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    opened = open_backend(open_bundle(write_bundle(batch=3)), backend=name)  # type: ignore[arg-type]
    answer = infer_all(opened, frames_u8, 3)
    opened.close()
    expected = 1.0 - frames_u8.astype(np.float64).mean(axis=3) / 255.0
    assert answer.anomaly_map.shape == (count, 1, 48, 64) and answer.score.shape == (count,)
    np.testing.assert_allclose(answer.anomaly_map[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(answer.score, expected.max(axis=(1, 2)), atol=1e-6)


def test_the_last_batch_is_filled_up_with_its_last_frame() -> None:
    frames_u8 = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    got = [(batch_u8.ravel().tolist(), count) for batch_u8, count in batches(frames_u8, 3)]
    assert got == [([0, 1, 2], 3), ([3, 4, 4], 2)]
    assert list(batches(frames_u8[:0], 3)) == []


def test_an_answer_is_not_overwritten_by_the_next(backend: Backend) -> None:
    first = backend.infer(FRAME)
    kept = first.anomaly_map.copy(), first.score.copy()
    backend.infer(np.zeros_like(FRAME))
    assert (first.anomaly_map == kept[0]).all() and (first.score == kept[1]).all()
    first.anomaly_map[:] = 0  # and is the caller's to change


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.astype(np.float32),
        FRAME[0],
        FRAME[:, :, :32],
        FRAME[:, ::-1],
        np.repeat(FRAME, 2, axis=0),
        FRAME.transpose(0, 3, 1, 2),
    ],
    ids=["float", "no batch", "narrow", "upside down view", "two", "channels first"],
)
def test_another_frame_is_refused_with_what_was_expected(backend: Backend, frame: np.ndarray) -> None:
    with pytest.raises(BackendError, match=r"the engine expects uint8 \(1, 48, 64, 3\), C-contiguous; pass pictures"):
        backend.infer(frame)


def test_a_closed_backend_says_so_and_closes_again(backend: Backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="the backend is closed; open the bundle again"):
        backend.infer(FRAME)


def test_the_fake_backend_takes_two_frames_in_order(bundle: Path) -> None:
    backend = open_backend(open_bundle(bundle), backend="fake", frames_in_flight=2)
    assert isinstance(backend, PipelinedBackend) and backend.frames_in_flight == 2
    with pytest.raises(BackendError, match="no frame is under way; start one first"):
        backend.finish()
    backend.start(FRAME)
    backend.start(np.zeros_like(FRAME))
    with pytest.raises(BackendError, match="2 frames are under way already; finish one first"):
        backend.start(FRAME)
    assert backend.under_way == 2
    assert [float(backend.finish().score[0]) for _ in range(2)] == [float(backend.infer(FRAME).score[0]), 1.0]


@pytest.mark.parametrize(("name", "count"), [("onnxruntime", 2), ("openvino", 2), ("fake", 3), ("fake", 0)])
def test_more_frames_in_flight_than_a_backend_takes_at_once_are_refused(bundle: Path, name: str, count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} frames in flight on {name}; use 1, or 2 with an engine of TensorRT"):
        open_backend(open_bundle(bundle), backend=name, frames_in_flight=count)  # type: ignore[arg-type]


def test_an_unknown_backend_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="no backend 'tensorflow'; use one of: onnxruntime, openvino, tensorrt, "):
        open_backend(open_bundle(bundle), backend="tensorflow")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "fake"])
def test_a_precision_the_bundle_lacks_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(UsageError, match="has no int8 graph"):
        open_backend(open_bundle(bundle), backend=name, precision="int8")  # type: ignore[arg-type]


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, graph: GraphSpec) -> None:
    for data in (b"", b"not a graph"):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(BackendError, match=r"model\.onnx: ONNX Runtime refuses it \(.*export the bundle again"):
            OnnxRuntimeBackend(tmp_path / "model.onnx", graph)


@pytest.mark.parametrize("tensor", ["frame", "anomaly_map", "score"])
def test_a_graph_that_is_not_the_contracts_is_refused(bundle: Path, graph: GraphSpec, tensor: str) -> None:
    spec = getattr(graph, tensor)
    renamed = replace(graph, **{tensor: replace(spec, name="other")})
    with pytest.raises(BackendError, match=r"tensor other is no tensor of this name, the contract says \('tensor"):
        OnnxRuntimeBackend(bundle / "model.onnx", renamed)


def test_a_graph_of_another_size_is_refused(write_bundle: Callable[..., Path], graph: GraphSpec) -> None:
    other = write_bundle("other", size_hw=(32, 32)) / "model.onnx"
    with pytest.raises(BackendError, match=r"tensor frame is \('tensor\(uint8\)', \(1, 32, 32, 3\)\), the contract"):
        OnnxRuntimeBackend(other, graph)


def lookup_graph() -> bytes:
    """Looks every value of the frame up in a table of 100: a value of 100 and more fails while running, not before."""
    constants = {
        "flat": np.array([-1], np.int64),
        "like_frame": np.array([1, 48, 64, 3], np.int64),
        "axis": np.array([1], np.int64),
        "table": np.zeros(100, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["frame", "flat"], ["values"]),
        helper.make_node("Cast", ["values"], ["positions"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "positions"], ["found"]),
        helper.make_node("Reshape", ["found", "like_frame"], ["pixels"]),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 48, 64, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 48, 64]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def test_an_engine_that_fails_on_a_frame_raises(tmp_path: Path, graph: GraphSpec) -> None:
    (tmp_path / "model.onnx").write_bytes(lookup_graph())
    backend = OnnxRuntimeBackend(tmp_path / "model.onnx", graph)
    assert backend.infer(np.full_like(FRAME, 99)).score[0] == 0.0
    with pytest.raises(BackendError, match=r"inference failed: .*; run `rdedge info` on the bundle"):
        backend.infer(np.full_like(FRAME, 100))
