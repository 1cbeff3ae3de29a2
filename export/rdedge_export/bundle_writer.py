"""From a finished run to a bundle on disk, whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from rdedge.atomic import new_folder
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.bundle import Bundle, open_bundle, sha256_of_file
from rdedge.contract import (
    CONTRACT_FILE,
    MAX_CALIBRATION_FRAMES,
    SCHEMA_VERSION,
    CalibrationSpec,
    Contract,
    DataSpec,
    GraphSpec,
    ModelSpec,
    Precision,
    PrecisionSpec,
    encode_contract,
    sealed,
)
from rdedge.fidelity import Gate
from rdedge.good_parts import Threshold
from rdedge.line.drift import distribution_of, frame_statistics
from rdedge.report_page import write_page
from rdedge.threshold import Method, fit_thresholds
from rdedge.versions import library_versions
from rdedge_export.calibration import read_calibration
from rdedge_export.gate import DEFAULT_BUDGET, Budget, GateFrames, Gatekeeper
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.parity import TOLERANCE_FP32, compare
from rdedge_export.precision_report import precision_section
from rdedge_export.precisions import Lowering
from rdedge_export.qat import int8_with_qat
from rdedge_train.evaluate import Evaluation, JudgedParts, evaluate, find_parts
from rdedge_train.evaluate_verb import write_evaluation_report
from rdedge_train.run_folder import FinishedRun
from rdedge_train.subject import Subject, predict_through

GRAPH_FILES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
REPORT_FILE = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """``with_transposed``: transposed convolutions too; ``qat``: try fine-tuning, keep it if the gate says so."""

    with_transposed: bool = False
    qat: bool = False


DEFAULT_INT8 = Int8Options()


@dataclass(frozen=True, slots=True)
class Exported:
    """A written bundle, and its evaluation in FP32 where labelled parts were given."""

    bundle: Bundle
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True)
class _Rule:
    """How image thresholds are fitted."""

    rate: float
    method: Method


@dataclass(frozen=True, slots=True)
class _Written:
    """One precision in the folder, with what was measured through its file."""

    spec: PrecisionSpec
    subject: Subject
    evaluation: Evaluation | None
    judged: JudgedParts | None


def write_bundle(
    run: FinishedRun,
    out: Path,
    *,
    false_reject_rate: float,
    threshold_method: Method = "auto",
    labelled: Path | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    calibration: Path | None = None,
    budget: Budget = DEFAULT_BUDGET,
    int8: Int8Options = DEFAULT_INT8,
    batch: int = 1,
) -> Exported:
    """Export FP32, compare with PyTorch, fit thresholds on the graph's own scores, evaluate if ``labelled``; then the
    other ``precisions`` as far as the gate lets them, each with its own thresholds; then write.

    ``calibration``: good images for INT8 ranges and fine-tuning, by default training images. ``batch``: frames of one
    engine call; everything is measured through the graph for so many.
    Raises ExportError, RunError, DatasetError, UsageError if ``out`` exists.
    """
    # First what may fail: the rest takes minutes.
    run.held_out_frames()
    if labelled is not None:
        find_parts(labelled)
    images = read_calibration(run, calibration) if "int8" in precisions else None
    tuning_u8 = read_calibration(run, calibration, most=None).frames_u8 if images is not None and int8.qat else None
    rule = _Rule(false_reject_rate, threshold_method)
    graph = graph_spec(run.record.config.input.size_hw, batch)
    with new_folder(out) as folder:
        fp32 = onnx_graph(run.detector, graph)
        (folder / GRAPH_FILES["fp32"]).write_bytes(fp32)
        written: dict[Precision, _Written] = {}
        written["fp32"] = _measured("fp32", None, run, folder, graph, out.name, rule, labelled)
        first = written["fp32"]
        section = ""
        if any(precision != "fp32" for precision in precisions):
            frames = _gate_frames(run, first.judged)
            keeper = Gatekeeper(onnx.load_from_string(fp32), frames, false_reject_rate, budget)
            lowering = Lowering(onnx.load_from_string(fp32), keeper)
            lowered = [lowering.fp16()] if "fp16" in precisions else []
            if images is not None and tuning_u8 is not None:
                lowered.append(
                    int8_with_qat(
                        run, keeper, lowering, images, tuning_u8, with_transposed=int8.with_transposed, batch=batch
                    )
                )
            elif images is not None:
                lowered.append(lowering.int8(images, with_transposed=int8.with_transposed))
            for one in lowered:
                (folder / GRAPH_FILES[one.precision]).write_bytes(one.model.SerializeToString())
                written[one.precision] = _measured(
                    one.precision, one.gate, run, folder, graph, out.name, rule, labelled
                )
            is_defective = np.concatenate([np.zeros(len(frames.good_u8), np.bool_), frames.is_defective])
            section = precision_section(keeper.answers.scores, is_defective, lowered)
        _write_report(folder / REPORT_FILE, first, labelled, section)
        spec = _store_calibration(run.held_out_frames(), folder)
        contract = _contract(run, graph, {name: one.spec for name, one in written.items()}, spec, folder)
        (folder / CONTRACT_FILE).write_bytes(encode_contract(contract))
    return Exported(open_bundle(out), first.evaluation)


def _gate_frames(run: FinishedRun, judged: JudgedParts | None) -> GateFrames:
    good_u8 = run.held_out_frames()
    if judged is None:
        return GateFrames(good_u8=good_u8, labelled_u8=good_u8[:0], is_defective=np.zeros(0, np.bool_))
    return GateFrames(good_u8=good_u8, labelled_u8=judged.frames_u8, is_defective=judged.is_defective)


def _measured(
    precision: Precision,
    gate: Gate | None,
    run: FinishedRun,
    folder: Path,
    graph: GraphSpec,
    name: str,
    rule: _Rule,
    labelled: Path | None,
) -> _Written:
    """What one graph file in ``folder`` answers: parity, its own thresholds, accuracy where ``labelled`` is given."""
    backend = OnnxRuntimeBackend(folder / GRAPH_FILES[precision], graph)
    batch = graph.batch
    try:
        # How far a lower precision may be from PyTorch is the gate's affair.
        tolerance = TOLERANCE_FP32 if gate is None else math.inf
        parity, answers = compare(run.detector, backend, run.held_out_frames(), tolerance, batch)
        if gate is not None:
            parity = msgspec.structs.replace(parity, tolerance=None)
        image_threshold, pixel_threshold = fit_thresholds(answers.maps, answers.scores, rule.rate, rule.method)
        subject = _subject(precision, run, backend, batch, image_threshold, name)
        evaluation, judged = (None, None) if labelled is None else evaluate(subject, labelled)
    finally:
        backend.close()
    spec = PrecisionSpec(
        file=GRAPH_FILES[precision],
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        good_scores=distribution_of(answers.scores),
        parity=parity,
        metrics=None if evaluation is None else evaluation.as_metrics(),
        gate=gate,
    )
    return _Written(spec, subject, evaluation, judged)


def _subject(
    precision: Precision,
    run: FinishedRun,
    backend: OnnxRuntimeBackend,
    batch: int,
    image_threshold: Threshold,
    name: str,
) -> Subject:
    config = run.record.config
    facts = {"Precision": precision, "Engine": backend.name, "Model": config.model, "Head": config.head}
    return Subject(
        name=name,
        input=config.input,
        image_threshold=image_threshold,
        predict=predict_through(backend, batch),
        facts=facts,
    )


def _write_report(path: Path, fp32: _Written, labelled: Path | None, section: str) -> None:
    """Of labelled parts, or of the precisions alone; none where there is nothing to tell."""
    if fp32.evaluation is not None and fp32.judged is not None and labelled is not None:
        write_evaluation_report(path, fp32.subject, fp32.evaluation, fp32.judged, labelled, section)
    elif section:
        title = f"Precisions: {fp32.subject.name}"
        write_page(path, title, f"<h1>{escape(title)}</h1>{section}")


def _store_calibration(held_out_u8: NDArray[np.uint8], folder: Path) -> CalibrationSpec:
    """Held-out frames (n, H, W, 3) RGB as lossless pictures, evenly drawn where there are more than a bundle takes."""
    n = min(len(held_out_u8), MAX_CALIBRATION_FRAMES)
    spec = CalibrationSpec(frames=n)
    (folder / "calibration").mkdir()
    drawn = np.linspace(0, len(held_out_u8) - 1, n).round().astype(int)
    for name, index in zip(spec.file_names(), drawn, strict=True):
        frame_u8 = held_out_u8[index]
        is_grey = (frame_u8 == frame_u8[..., :1]).all()
        stored_u8 = frame_u8[..., 0] if is_grey else frame_u8[..., ::-1]
        png = cv2.imencode(".png", stored_u8, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
        (folder / name).write_bytes(png.tobytes())
    return spec


def _contract(
    run: FinishedRun,
    graph: GraphSpec,
    precisions: dict[Precision, PrecisionSpec],
    calibration: CalibrationSpec,
    folder: Path,
) -> Contract:
    record, config = run.record, run.record.config
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return sealed(
        Contract(
            schema_version=SCHEMA_VERSION,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            input=config.input,
            graph=graph,
            model=ModelSpec(
                name=config.model,
                teacher_weights=record.teacher,
                ocbe=config.ocbe,
                loss=config.loss,
                head=config.head,
                parameters=sum(p.numel() for p in run.detector.parameters()),
                weights_sha256=run.weights_sha256,
            ),
            data=DataSpec(
                train_images=len(record.train_images),
                train_sha256=record.train_sha256,
                held_out_images=len(record.held_out_images),
                held_out_sha256=record.held_out_sha256,
                split=f"{config.held_out_share:g} of the good images held out by seed"
                if record.train_images
                else "trained elsewhere; all good images given were held out",
                seed=config.seed,
            ),
            precisions=precisions,
            good_frames=frame_statistics(run.held_out_frames()),
            calibration=calibration,
            files={p.relative_to(folder).as_posix(): sha256_of_file(p) for p in files},
            versions=record.versions | library_versions("onnx", "onnxruntime", "torch"),
            contract_sha256="0" * 64,
        )
    )
