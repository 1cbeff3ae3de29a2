"""``rdedge export --precision``: from a trained run to a bundle whose FP16 and INT8 graphs passed the gate."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from rdedge.backends import BackendName, infer_all, open_backend
from rdedge.backends.openvino import proof_key
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.board.machine import processor_name
from rdedge.bundle import Bundle, open_bundle
from rdedge.cli import main
from rdedge.contract import Precision
from rdedge.cpu_proof import read_proof
from rdedge.threshold import fit_thresholds
from rdedge_export.calibration import read_calibration
from rdedge_export.cpu_engine import adds_int8_exactly
from rdedge_export.fp16 import FP16_MAX, as_stored
from rdedge_export.graph_view import float_types
from rdedge_export.map_cosine import map_cosines
from rdedge_export.observers import RANGE_METHODS, largest_magnitudes
from rdedge_train.data import find_images, read_frames
from rdedge_train.run_folder import FinishedRun, open_run
from rdedge_train.sample import SamplePlan, make_sample

LOOSE = "cosine=0.9"  # three epochs at 64 pixels make a poor model, on which INT8 costs more than on a good one


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = SamplePlan(train_good=24, test_good=6, test_per_defect=2, video_frames=1, size_hw=(128, 128))
    return make_sample(tmp_path_factory.mktemp("data") / "parts", plan)


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", str(parts), "--out", str(out), "--image-size", "64", "--epochs", "3"]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    options = ["--precision", "fp16,int8", "--labelled", str(parts), "--budget", LOOSE]
    assert main(["export", str(run), "--out", str(out), *options]) == 0
    return open_bundle(out)


Refused = Callable[..., str]


@pytest.fixture
def refused(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Exports with these options, which must fail with one line and leave nothing behind."""

    def export(*options: object, of: Path = run) -> str:
        capfd.readouterr()
        folder = tmp_path / "out"
        assert main(["export", str(of), "--out", str(folder / "bundle"), *map(str, options)]) == 2
        assert not folder.exists() or not list(folder.iterdir())
        captured = capfd.readouterr()
        assert captured.err.startswith("rdedge: error: ") and captured.err.count("\n") == 1
        return captured.err

    return export


def test_the_bundle_holds_three_graphs_each_smaller(bundle: Bundle) -> None:
    assert list(bundle.contract.precisions) == ["fp32", "fp16", "int8"]
    sizes = [(bundle.path / spec.file).stat().st_size for spec in bundle.contract.precisions.values()]
    # The head's directions take as many bytes in each: they are FP16 from the start.
    assert sizes[1] <= 0.55 * sizes[0] and sizes[2] <= 0.38 * sizes[0]


def test_openvino_runs_the_quantised_graph_as_it_was_measured(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Bundle(Path(shutil.copytree(bundle.path, tmp_path / "bundle")), bundle.contract)
    command = ["engine", str(own.path), "--backend", "openvino", "--precision", "int8"]
    if not adds_int8_exactly(processor_name(), platform.machine()):
        assert main(command) == 2 and "INT8 products saturate" in capsys.readouterr().err
        return
    assert main(command) == 0
    proof = read_proof(own, proof_key(own, "int8"))
    frames_u8 = own.calibration_frames()

    def maps(graph: Precision, backend: BackendName) -> NDArray[np.float32]:
        with closing(open_backend(own, backend=backend, precision=graph)) as opened:
            return infer_all(opened, frames_u8, 1).anomaly_map[:, 0]

    fp32 = maps("fp32", "onnxruntime")
    by_openvino = map_cosines(fp32, maps("int8", "openvino"))
    assert by_openvino.min() == pytest.approx(proof.map_cosine, abs=1e-5)
    assert by_openvino.mean() < 0.99999, "INT8 costs something"
    assert by_openvino.mean() > map_cosines(fp32, maps("int8", "onnxruntime")).mean() - 0.05, "but no more than it must"
    capsys.readouterr()
    assert main(["info", str(own.path)]) == 0, "a proof in the bundle is none of its hashed files"


def test_openvino_without_vnni_is_found_out_by_measuring(bundle: Bundle, tmp_path: Path) -> None:
    """Any x86 can be told to do without: its sums then saturate as those of an older one do."""
    own = shutil.copytree(bundle.path, tmp_path / "bundle")
    command = [sys.executable, "-m", "rdedge", "engine", str(own), "--backend", "openvino", "--precision", "int8"]
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, env=older, capture_output=True, text=True, check=False, timeout=300)
    if platform.machine() != "x86_64":
        assert done.returncode == 0, "other processors know nothing of it"
        return
    assert done.returncode == 2 and re.search(r"too far from FP32: map cosine 0\.[0-8]", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and not list((own / "engines").glob("*.json"))


def test_each_precision_has_thresholds_of_its_own_scores(bundle: Bundle) -> None:
    frames_u8 = bundle.calibration_frames()
    for precision, spec in bundle.contract.precisions.items():
        backend = OnnxRuntimeBackend(bundle.graph_path(precision), bundle.contract.graph)
        answers = [backend.infer(frame[np.newaxis]) for frame in frames_u8]
        maps = np.stack([answer.anomaly_map[0, 0] for answer in answers])
        scores = np.array([answer.score[0] for answer in answers])
        rate = spec.image_threshold.target_rate
        assert fit_thresholds(maps, scores, rate) == (spec.image_threshold, spec.pixel_threshold)
    values = {spec.image_threshold.value for spec in bundle.contract.precisions.values()}
    assert len(values) == 3


def test_no_value_overflows_on_any_good_or_defective_part(bundle: Bundle, run: Path, parts: Path) -> None:
    """Every value an FP16 engine stores, on every frame there is: none infinite, and room above for brighter parts."""
    model = as_stored(onnx.load(bundle.graph_path("fp16")))
    types = float_types(onnx.load(bundle.graph_path("fp16")))
    spec = bundle.contract.input
    labelled = read_frames(parts, [part.path for part in find_images(parts).test_parts], spec).frames_u8
    good = read_frames(parts, list(find_images(parts).good_paths), spec).frames_u8
    assert (len(labelled), len(good)) == (14, 24)
    made = [node.output[0] for node in model.graph.node if types.get(node.output[0]) == TensorProto.FLOAT16]
    assert len(made) > 100
    largest = largest_magnitudes(model, made, np.concatenate([good, labelled]))  # raises where one is not finite
    assert 100.0 < max(largest.values()) <= FP16_MAX / 2


def test_large_constants_of_the_head_take_half_the_bytes(bundle: Bundle) -> None:
    for precision in ("fp16", "int8"):
        constants = onnx.load(bundle.graph_path(precision)).graph.initializer
        assert not [t.name for t in constants if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= 16384]


def test_calibration_frames_are_the_held_out_ones(bundle: Bundle, run: Path) -> None:
    assert (bundle.calibration_frames() == open_run(run).held_out_frames()).all()


def test_the_gate_s_figures_are_in_the_contract(bundle: Bundle) -> None:
    fp32, fp16, int8 = bundle.contract.precisions.values()
    assert fp32.gate is None and fp32.parity.tolerance is not None
    for spec in (fp16, int8):
        gate = spec.gate
        assert gate is not None and spec.parity.tolerance is None and spec.metrics is not None
        assert (gate.good_frames, gate.labelled_frames, gate.min_map_cosine) == (5, 14, 0.9)
        assert 0.9 <= gate.map_cosine < 1.0 and gate.auroc_change is not None and gate.auroc_change >= -0.005
    assert fp16.gate is not None and fp16.gate.quantisation is None
    assert int8.gate is not None and int8.gate.quantisation is not None
    assert int8.gate.quantisation.images == 19 and int8.gate.quantisation.source.startswith("training images of ")
    assert fp16.gate.map_cosine > int8.gate.map_cosine


def test_the_report_shows_both_plots(bundle: Bundle) -> None:
    page = (bundle.path / "report.html").read_text(encoding="utf-8")
    for expected in ("FP16 against FP32", "INT8 against FP32", "Scores in INT8 and FP32", "Cost of each layer in INT8"):
        assert page.count(expected) == 1
    assert all(f"<li>calibrated by {method}: map cosine 0." in page for method in RANGE_METHODS)
    assert page.count('<circle class="bar good"') == 2 * (5 + 6)
    assert page.count('<circle class="bar defective"') == 2 * 8


def test_info_and_evaluate_know_the_precisions(bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle.path)]) == 0
    out = capsys.readouterr().out
    assert out.count("  against fp32") == 2 and "calibrated on 19 images by " in out
    assert main(["evaluate", str(bundle.path), str(parts), "--precision", "int8"]) == 0
    metrics = bundle.contract.precisions["int8"].metrics
    assert metrics is not None and f"{metrics.image_auroc:.4f}" in capsys.readouterr().out


def test_without_labelled_parts_the_report_is_of_the_precisions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(["export", str(run), "--out", str(out), "--precision", "fp32,fp16"]) == 0
    assert "fp16: " in capsys.readouterr().out
    gate = open_bundle(out).contract.precisions["fp16"].gate
    assert gate is not None and gate.labelled_frames == 0 and gate.auroc_change is None
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "FP16 against FP32" in page


def test_fp32_alone_needs_no_gate(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert list(open_bundle(tmp_path / "bundle").contract.precisions) == ["fp32"]
    assert not (tmp_path / "bundle" / "report.html").exists()


def test_a_precision_beyond_the_budget_is_refused_and_nothing_written(refused: Refused) -> None:
    error = refused("--precision", "fp16", "--budget", "cosine=1")
    assert "fp16 is too far from fp32: map cosine " in error and "; export without fp16, " in error
    assert "; with 30 of 60 layers put back: map cosine " in error


@pytest.mark.parametrize("text", ["", "fp64", "fp16;int8", "int8,"])
def test_an_unknown_precision_is_refused(refused: Refused, text: str) -> None:
    assert "give some of fp32,fp16,int8" in refused("--precision", text)


def test_a_calibration_folder_is_read_like_a_data_folder(run: Path, parts: Path, refused: Refused) -> None:
    assert "none: no such folder" in refused("--precision", "int8", "--calibration", parts / "none")


def calibrated(run: FinishedRun, folder: Path | None) -> tuple[int, str]:
    calibration = read_calibration(run, folder)
    return len(calibration.frames_u8), calibration.source


def test_held_out_parts_are_never_calibrated_on(run: Path, parts: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    assert calibrated(opened, None) == (19, "training images of parts")
    assert calibrated(opened, parts) == (19, str(parts)), "24 good images, 5 of them held out"
    calibration = read_calibration(opened, parts)
    train = [parts / name for name in opened.record.train_images]
    assert calibration.sha256 == read_frames(parts, train, opened.record.config.input).sha256
    (tmp_path / "held_out").mkdir()
    for name in opened.record.held_out_images:
        shutil.copy(parts / name, tmp_path / "held_out")
    with pytest.raises(Exception, match="only held-out parts"):
        read_calibration(opened, tmp_path / "held_out")


def test_training_images_that_are_gone_are_asked_for(parts: Path, refused: Refused) -> None:
    moved = parts.with_name("moved")
    parts.rename(moved)
    try:
        error = refused("--precision", "int8")
    finally:
        moved.rename(parts)
    assert "19 of 19 training images are no longer there" in error and "--calibration" in error


def test_a_run_trained_by_a_relative_path_finds_its_images_from_anywhere(
    parts_folder: Path, tmp_path: Path, train: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts_folder.parent)
    train(Path(parts_folder.name), tmp_path / "run", epochs=1)
    monkeypatch.chdir(tmp_path)
    opened = open_run(tmp_path / "run")
    assert opened.record.data == str(parts_folder)
    assert calibrated(opened, None) == (10, f"training images of {parts_folder.name}")


def test_a_damaged_calibration_image_ends_the_export(parts: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(parts / "train" / "good", tmp_path / "images")
    damaged = sorted((tmp_path / "images").iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert damaged.name in refused("--precision", "int8", "--calibration", tmp_path / "images")
