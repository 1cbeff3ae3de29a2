"""A bundle: complete, honest about where it came from, and written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import rdedge.bundle
import rdedge_export.bundle_writer
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.bundle import open_bundle, sha256_of_file
from rdedge.contract import GraphSpec
from rdedge.errors import DatasetError, ExportError, RdedgeError, UsageError
from rdedge.inspector import Inspector
from rdedge.threshold import fit_thresholds
from rdedge_export.bundle_writer import write_bundle
from rdedge_export.graph import graph_spec
from rdedge_train.model import Detector
from rdedge_train.run_folder import FinishedRun, open_run

DrawWasher = Callable[..., NDArray[np.uint8]]
Copied = Callable[[Path], Path]
Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> FinishedRun:
    return open_run(tiny_run)


def test_the_contract_says_where_the_model_came_from(tiny_bundle: Path, run: FinishedRun) -> None:
    contract = open_bundle(tiny_bundle).contract
    record, model, data = run.record, contract.model, contract.data
    assert contract.input == record.config.input
    assert contract.graph == graph_spec((64, 64))
    assert (model.name, model.ocbe, model.loss, model.head) == ("edge-lite0", "mff+oce", "squared", "residual")
    assert model.teacher_weights == record.teacher
    assert model.weights_sha256 == run.weights_sha256
    assert model.parameters == sum(p.numel() for p in run.detector.parameters())
    assert (data.train_images, data.held_out_images, data.seed) == (10, 2, 0)
    assert (data.train_sha256, data.held_out_sha256) == (record.train_sha256, record.held_out_sha256)
    assert data.split == "0.2 of the good images held out by seed"
    assert contract.versions == record.versions | {
        "onnx": onnx.__version__,
        "onnxruntime": contract.versions["onnxruntime"],
    }
    age_s = (datetime.now(timezone.utc) - datetime.fromisoformat(contract.created_utc)).total_seconds()
    assert 0 <= age_s < 3600


def test_every_file_is_listed_with_its_hash(tiny_bundle: Path) -> None:
    contract = open_bundle(tiny_bundle).contract
    assert sorted(p.name for p in tiny_bundle.iterdir()) == ["calibration", "contract.json", "model.onnx"]
    files = ["calibration/000.png", "calibration/001.png", "model.onnx"]
    assert contract.files == {name: sha256_of_file(tiny_bundle / name) for name in files}
    assert list(contract.precisions) == ["fp32"]


def test_a_line_can_tell_drift_from_the_held_out_parts(tiny_bundle: Path, run: FinishedRun) -> None:
    contract = open_bundle(tiny_bundle).contract
    backend = OnnxRuntimeBackend(tiny_bundle / "model.onnx", graph_spec((64, 64)))
    frames_u8 = run.held_out_frames()
    scores = np.array([backend.infer(frame[np.newaxis]).score[0] for frame in frames_u8])
    good = contract.precisions["fp32"].good_scores
    assert good.samples == len(frames_u8) == contract.good_frames.brightness.samples
    assert (good.quantiles[0], good.quantiles[-1]) == (scores.min(), scores.max())
    levels = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).mean() for frame in frames_u8]
    quantiles = contract.good_frames.brightness.quantiles
    assert quantiles[0] == pytest.approx(min(levels)) and quantiles[-1] == pytest.approx(max(levels))


def test_the_score_is_the_maps_maximum(tiny_bundle: Path, draw_washer: DrawWasher) -> None:
    """A line's mask takes the maximum of what it leaves of the map, and calls it by the same name."""
    with Inspector.open(tiny_bundle) as inspector:
        for seed in range(5):
            verdict = inspector.inspect(draw_washer(seed, is_scratched=seed % 2 == 1))
            assert verdict.score == verdict.anomaly_map.max()


def test_thresholds_are_those_of_the_graphs_own_scores(tiny_bundle: Path, run: FinishedRun) -> None:
    spec = open_bundle(tiny_bundle).contract.precisions["fp32"]
    backend = OnnxRuntimeBackend(tiny_bundle / spec.file, graph_spec((64, 64)))
    answers = [backend.infer(frame_u8[np.newaxis]) for frame_u8 in run.held_out_frames()]
    maps = np.concatenate([a.anomaly_map[:, 0] for a in answers])
    scores = np.concatenate([a.score for a in answers])
    assert (spec.image_threshold, spec.pixel_threshold) == fit_thresholds(maps, scores, 0.1)
    assert spec.image_threshold.target_rate == 0.1
    assert spec.metrics is None
    assert spec.parity.frames == 2 and spec.parity.max_abs_map <= 1e-4 >= spec.parity.max_abs_score


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_is_left_alone(run: FinishedRun, tmp_path: Path, snapshot: Snapshot, kind: str) -> None:
    out = tmp_path / "bundle"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_bytes(b"precious")
    else:
        out.symlink_to(tmp_path / "gone")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError) as caught:
        write_bundle(run, out, false_reject_rate=0.1)
    assert str(caught.value) == f"{out} already exists; name another folder or remove it first"
    assert snapshot(tmp_path) == before
    assert os.listdir(tmp_path) == ["bundle"]


def perturbed(graph: bytes) -> bytes:
    """The graph with one weight tensor a little off."""
    model = onnx.load_from_string(graph)
    weight = next(t for t in model.graph.initializer if t.name.startswith("restorer.student.heads.0"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name))
    return bytes(model.SerializeToString())


def without_student(graph: bytes) -> bytes:
    """A graph that no engine loads: a weight is gone."""
    model = onnx.load_from_string(graph)
    del model.graph.initializer[0]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (perturbed, "the onnxruntime graph differs from the trained model by "),
        (without_student, "model.onnx: ONNX Runtime refuses it"),
        (lambda graph: b"", "model.onnx: ONNX Runtime refuses it"),
    ],
    ids=["differs", "broken", "empty"],
)
def test_a_wrong_graph_leaves_nothing(
    run: FinishedRun,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[bytes], bytes],
    complaint: str,
) -> None:
    def tampered_graph(detector: Detector, spec: GraphSpec) -> bytes:
        return tamper((tiny_bundle / "model.onnx").read_bytes())

    monkeypatch.setattr(rdedge_export.bundle_writer, "onnx_graph", tampered_graph)
    with pytest.raises(RdedgeError) as caught:
        write_bundle(run, tmp_path / "bundle", false_reject_rate=0.1)
    assert complaint in str(caught.value)
    assert isinstance(caught.value, ExportError) is (tamper is perturbed)
    assert os.listdir(tmp_path) == []


def test_labelled_parts_that_are_not_there_are_found_first(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(rdedge_export.bundle_writer, "onnx_graph")
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        write_bundle(run, tmp_path / "bundle", false_reject_rate=0.1, labelled=tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_labelled_parts_that_cannot_be_read_leave_nothing(
    run: FinishedRun, tiny_bundle: Path, parts_folder: Path, copied: Copied, tmp_path: Path
) -> None:
    data = copied(parts_folder)
    (data / "test/good/000.png").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DatasetError, match=r"000.png: is empty"):
        patch.setattr(rdedge_export.bundle_writer, "onnx_graph", lambda *_: (tiny_bundle / "model.onnx").read_bytes())
        write_bundle(run, tmp_path / "bundle", false_reject_rate=0.1, labelled=data)
    assert os.listdir(tmp_path) == [data.name]


LINE = """
import json
import sys
for name in ("torch", "torchvision", "onnx", "rdedge_train", "rdedge_export", "safetensors", "sklearn", "scipy"):
    sys.modules[name] = None  # importing it raises ImportError
import cv2
from rdedge import Inspector
with Inspector.open(sys.argv[1]) as inspector:
    verdicts = [inspector.inspect(cv2.imread(path)) for path in sys.argv[2:]]
print(json.dumps([[v.score, v.is_anomalous, v.threshold, len(v.regions)] for v in verdicts]))
"""


def test_the_line_judges_without_the_training_stack(tiny_bundle: Path, tmp_path: Path, draw_washer: DrawWasher) -> None:
    pictures = {"good.png": draw_washer(901), "scratched.png": draw_washer(902, is_scratched=True)}
    for name, picture in pictures.items():
        cv2.imwrite(str(tmp_path / name), picture)
    command = [sys.executable, "-c", LINE, str(tiny_bundle), *(str(tmp_path / name) for name in pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    good, scratched = json.loads(done.stdout)
    assert scratched[0] > 2 * good[0]
    assert scratched[1] and scratched[3] >= 1
    limit = open_bundle(tiny_bundle).contract.precisions["fp32"].image_threshold.value
    with Inspector.open(tiny_bundle) as inspector:
        for picture, (score, is_anomalous, threshold, _) in zip(pictures.values(), (good, scratched), strict=True):
            assert score == pytest.approx(inspector.inspect(picture).score, abs=1e-5)
            assert (threshold, is_anomalous) == (limit, score > limit)


def test_a_bundle_is_evaluated_without_torch(tiny_bundle: Path, parts_folder: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from rdedge.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "evaluate", str(tiny_bundle), str(parts_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Defect ")


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_calibration_frames_are_stored_without_loss(tmp_path: Path, channels: int) -> None:
    frames_u8 = np.random.default_rng(0).integers(0, 256, (3, 32, 48, channels), dtype=np.uint8)
    frames_u8 = np.broadcast_to(frames_u8, (3, 32, 48, 3)).copy()
    spec = rdedge_export.bundle_writer._store_calibration(frames_u8, tmp_path)
    read = [rdedge.bundle._read_frame(tmp_path / name, (32, 48)) for name in spec.file_names()]
    assert (np.stack(read) == frames_u8).all()
    stored = cv2.imread(str(tmp_path / spec.file_names()[0]), cv2.IMREAD_UNCHANGED)
    assert stored.ndim == (2 if channels == 1 else 3)
