"""What is made in memory for one frame, line by line: nothing but what benchmarks/copies.py has a reason for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from copies import LEAST_BYTES, REASONS, allocations
from rdedge import Inspector
from rdedge.backends import BackendName, Prediction
from rdedge.backends.openvino import OpenVinoBackend
from rdedge.backends.ort import OnnxRuntimeBackend, open_session
from rdedge.bench.memory import peak_memory_mb
from rdedge.frames import Frame
from rdedge.inspector import Rules
from rdedge.judge import judge
from rdedge.line.masks import Mask
from rdedge.sources import open_source

MODEL_HW = (192, 256)
PIXELS = MODEL_HW[0] * MODEL_HW[1]
# Bytes for each of the model's pixels. NumPy does not see ONNX Runtime's answer: the array is the runtime's own.
MAP = {"onnxruntime": 0, "openvino": 4}
MOST_PREPROCESSING = 6  # the shrunk picture, and its colours in the graph's order

WriteBundle = Callable[..., Path]
DrawPart = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def bundle_path(write_bundle: WriteBundle) -> Path:
    return write_bundle(size_hw=MODEL_HW)


def made_for(inspector: Inspector, picture: NDArray[np.uint8], rules: Rules) -> dict[str, float]:
    """Bytes a pixel of the model, by function, of one frame that is not the first."""
    frame = Frame(image_bgr_u8=picture, index=0, captured_at_s=0.0, source="test")
    inspector.inspect_frame(frame, rules)
    rows = allocations(lambda: inspector.inspect_frame(frame, rules))
    assert rows is not None
    sizes: dict[str, float] = {}
    for row in rows:
        sizes[row.where] = sizes.get(row.where, 0) + row.size / PIXELS
    return sizes


def check_preprocessing(sizes: dict[str, float]) -> dict[str, float]:
    """How many functions it has is its own affair; the rest."""
    own = {name: size for name, size in sizes.items() if name.startswith("preprocess.")}
    assert 3 <= sum(own.values()) <= MOST_PREPROCESSING + 0.1, own
    return {name: size for name, size in sizes.items() if name not in own}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("defect_xy", [None, (80, 80)], ids=["good", "bad"])
def test_a_frame_makes_what_it_must(
    bundle_path: Path, draw_part: DrawPart, backend: BackendName, is_masked: bool, defect_xy: tuple[int, int] | None
) -> None:
    picture = np.kron(draw_part(defect_xy, MODEL_HW), np.ones((3, 3, 1), np.uint8))
    rules = Rules(mask=Mask(ignored=(((0, 0), (40, 0), (40, 40), (0, 40)),))) if is_masked else Rules()
    with Inspector.open(bundle_path, backend=backend) as inspector:
        sizes = check_preprocessing(made_for(inspector, picture, rules))
    expected: dict[str, float] = {f"backends/{backend}.infer": MAP[backend]} if MAP[backend] else {}
    if is_masked:
        expected["judge.masked"] = 4
    if defect_xy is not None:
        expected["judge.find_regions"] = 1 + 4
    assert sizes == pytest.approx(expected, abs=LEAST_BYTES / PIXELS)
    assert set(expected) <= set(REASONS)


def test_halving_a_large_picture_makes_less_than_a_third_of_it(bundle_path: Path, draw_part: DrawPart) -> None:
    """A quarter, a sixteenth and so on, and its colours in the graph's order; never the whole picture again."""
    picture = np.kron(draw_part(None, MODEL_HW), np.ones((8, 8, 1), np.uint8))
    with Inspector.open(bundle_path) as inspector:
        sizes = made_for(inspector, picture, Rules())
    assert set(sizes) <= set(REASONS)
    assert sum(sizes.values()) * PIXELS < picture.nbytes / 3 + 3 * PIXELS + LEAST_BYTES


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_picture_file_makes_its_bytes_and_its_pixels(tmp_path: Path, suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    path = tmp_path / f"part{suffix}"
    cv2.imwrite(str(path), picture)
    for _ in range(2):
        rows = allocations(lambda: list(open_source(f"folder:{tmp_path}")))
    assert rows is not None
    sizes = {row.where: row.size for row in rows}
    expected = {"images.read_bytes": path.stat().st_size, "images._decode": picture.nbytes}
    assert sizes == pytest.approx(expected, abs=LEAST_BYTES)


def test_the_trace_sees_a_copy(bundle_path: Path, draw_part: DrawPart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the frame on its way into the engine, made by one who is not rdedge: its caller is charged."""
    infer = OnnxRuntimeBackend.infer

    def copying(self: OnnxRuntimeBackend, frame_u8: NDArray[np.uint8]) -> Prediction:
        return infer(self, frame_u8.copy())

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", copying)
    with Inspector.open(bundle_path) as inspector:
        sizes = check_preprocessing(made_for(inspector, draw_part(None, MODEL_HW), Rules()))
    assert sizes == pytest.approx({"backends/base.infer_all": 3}, abs=LEAST_BYTES / PIXELS)


def test_a_map_on_its_way_to_a_good_verdict_is_only_looked_at() -> None:
    anomaly_map = np.full(MODEL_HW, 0.1, np.float32)
    arguments = {"image_threshold": 0.5, "pixel_threshold": 0.4, "roi_xywh": (0, 0, *MODEL_HW[::-1])}
    assert allocations(lambda: judge(anomaly_map, 0.1, **arguments)) == []  # type: ignore[arg-type]


def test_onnxruntime_reads_the_frame_where_it_lies_and_hands_its_own_array_over(bundle_path: Path) -> None:
    size = 200_000_000
    graph = helper.make_graph(
        [helper.make_node("Slice", ["frame", "begin", "end"], ["last"])],
        "last",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [size])],
        [helper.make_tensor_value_info("last", TensorProto.UINT8, [1])],
        [numpy_helper.from_array(np.array([at], np.int64), k) for k, at in (("begin", size - 1), ("end", size))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString())
    frame_u8 = np.full(size, 7, np.uint8)
    before_mb = peak_memory_mb()
    (last,) = session.run(["last"], {"frame": frame_u8})
    assert last == [7] and peak_memory_mb() - before_mb < size / 1e6 / 4
    with Inspector.open(bundle_path) as inspector:
        answer = inspector.backend.infer(np.zeros((1, *MODEL_HW, 3), np.uint8))
    assert not answer.anomaly_map.flags.owndata and answer.anomaly_map.flags.writeable


def test_openvino_reads_and_writes_where_the_arrays_lie(bundle_path: Path) -> None:
    frame_u8 = np.zeros((1, *MODEL_HW, 3), np.uint8)
    with Inspector.open(bundle_path, backend="openvino") as inspector:
        backend = inspector.backend
        assert isinstance(backend, OpenVinoBackend)
        answer = backend.infer(frame_u8)
        for name, array in (("frame", frame_u8), ("anomaly_map", answer.anomaly_map), ("score", answer.score)):
            assert backend._request is not None
            assert backend._request.get_tensor(name).data.ctypes.data == array.ctypes.data


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_answer_stays_the_callers(bundle_path: Path, backend: BackendName) -> None:
    """Whatever the engine does next, whatever becomes of the frame, and after it is closed."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (1, *MODEL_HW, 3), np.uint8) for _ in range(3)]
    frames[1].flags.writeable = False
    expected = [1.0 - frame[0].mean(axis=2) / 255.0 for frame in frames]
    with Inspector.open(bundle_path, backend=backend) as inspector:
        answers = []
        for frame in frames:
            given = frame.copy() if frame.flags.writeable else frame
            answers.append(inspector.backend.infer(given))
            if given.flags.writeable:
                given[:] = 0
            del given
        answers[0].anomaly_map[:] += 1.0
        inspector.backend.infer(frames[2])
    answers[0].anomaly_map[:] -= 1.0
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.anomaly_map[0, 0], wanted, atol=1e-5)
        assert answer.score[0] == pytest.approx(wanted.max(), abs=1e-5)


def test_what_openvino_points_to_lives_until_it_points_elsewhere(bundle_path: Path) -> None:
    with Inspector.open(bundle_path, backend="openvino") as inspector:
        frame_u8 = np.zeros((1, *MODEL_HW, 3), np.uint8)
        given = weakref.ref(frame_u8)
        inspector.backend.infer(frame_u8)
        del frame_u8
        assert given() is not None
        inspector.backend.infer(np.zeros((1, *MODEL_HW, 3), np.uint8))
        assert given() is None
