"""The comparison with PyTorch: small differences are measured, large ones and NaN refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.errors import ExportError
from rdedge_export.graph import graph_spec
from rdedge_export.parity import TOLERANCE_FP32, compare
from rdedge_train.run_folder import FinishedRun, open_run

SPEC = graph_spec((64, 64))
STUDENT = "restorer.student.heads.0"


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> FinishedRun:
    return open_run(tiny_run)


Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BackendOf = Callable[..., OnnxRuntimeBackend]


@pytest.fixture
def backend_of(tmp_path: Path, tiny_bundle: Path) -> BackendOf:
    """The tiny bundle's graph with some of its weights changed."""

    def make(name: str, change: Change) -> OnnxRuntimeBackend:
        model = onnx.load(tiny_bundle / "model.onnx")
        chosen = [tensor for tensor in model.graph.initializer if tensor.name.startswith(name)]
        assert chosen
        for tensor in chosen:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
        onnx.save(model, tmp_path / "model.onnx")
        return OnnxRuntimeBackend(tmp_path / "model.onnx", SPEC)

    return make


def test_measures_what_it_says(run: FinishedRun, backend_of: BackendOf) -> None:
    backend, frames_u8 = backend_of(STUDENT, lambda w: w), run.held_out_frames()
    parity, answers = compare(run.detector, backend, frames_u8, TOLERANCE_FP32)
    maps, scores = run.detector.predict(torch.from_numpy(frames_u8))
    assert answers.maps.shape == (2, 64, 64) and answers.scores.shape == (2,)
    map_errors = np.abs(answers.maps - maps[:, 0].numpy())
    assert parity.frames == 2
    assert parity.max_abs_map == pytest.approx(map_errors.max(), abs=2e-5)
    assert parity.max_abs_score == pytest.approx(np.abs(answers.scores - scores.numpy()).max(), abs=2e-5)
    assert 0 <= parity.p999_abs_map <= parity.max_abs_map <= TOLERANCE_FP32
    assert parity.tolerance == pytest.approx(TOLERANCE_FP32 * max(1.0, float(maps.abs().max())), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "difference"),
    [(lambda w: w * np.float32(1.01) + np.float32(0.01), r"\d\.\d\de-\d\d"), (lambda w: w * np.float32(np.nan), "nan")],
    ids=["weights-off", "NaN"],
)
def test_a_graph_that_differs_is_refused(
    run: FinishedRun,
    backend_of: BackendOf,
    change: Change,
    difference: str,
) -> None:
    complaint = f"the onnxruntime graph differs from the trained model by {difference} on 2 real frames, more than "
    with pytest.raises(ExportError, match=complaint) as caught:
        compare(run.detector, backend_of(STUDENT, change), run.held_out_frames(), TOLERANCE_FP32)
    assert caught.value.remedy.startswith("nothing was written; ")


def test_a_score_that_is_not_the_maps_is_refused(run: FinishedRun, tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    producer = next(node for node in model.graph.node if "score" in node.output)
    producer.output[0] = "maximum"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.01], np.float32), "offset"))
    model.graph.node.append(onnx.helper.make_node("Add", ["maximum", "offset"], ["score"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"differs from the trained model by 1\.00e-02"):
        compare(run.detector, OnnxRuntimeBackend(tmp_path / "model.onnx", SPEC), run.held_out_frames(), TOLERANCE_FP32)


def test_the_tolerance_grows_with_the_map(run: FinishedRun, backend_of: BackendOf) -> None:
    """A calm line gives small deviations and so large maps, which float32 rounds in proportion."""
    detector = copy.deepcopy(run.detector)
    for name, buffer in detector.anomaly_map.named_buffers():
        if name.startswith("rows"):
            buffer *= 1000
    backend = backend_of("anomaly_map.rows", lambda rows: rows * np.float32(1000))
    parity, answers = compare(detector, backend, run.held_out_frames(), TOLERANCE_FP32)
    assert parity.max_abs_map > TOLERANCE_FP32
    assert parity.tolerance == pytest.approx(TOLERANCE_FP32 * float(np.abs(answers.maps).max()), rel=1e-3)
