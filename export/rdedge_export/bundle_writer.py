"""From a finished run to a bundle on disk, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from rdedge.atomic import new_folder
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.bundle import Bundle, open_bundle, sha256_of_file
from rdedge.contract import (
    CONTRACT_FILE,
    SCHEMA_VERSION,
    Contract,
    DataSpec,
    ModelSpec,
    PrecisionSpec,
    encode_contract,
    sealed,
)
from rdedge.threshold import fit_thresholds
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.parity import TOLERANCE_FP32, compare
from rdedge_train.evaluate import Evaluation, evaluate, find_parts
from rdedge_train.evaluate_verb import write_evaluation_report
from rdedge_train.run_folder import FinishedRun
from rdedge_train.subject import Subject
from rdedge_train.versions import library_versions

GRAPH_FILE, REPORT_FILE = "model.onnx", "report.html"


@dataclass(frozen=True, slots=True)
class Exported:
    """A written bundle, and its evaluation where labelled parts were given."""

    bundle: Bundle
    evaluation: Evaluation | None


def write_bundle(run: FinishedRun, out: Path, *, false_reject_rate: float, labelled: Path | None = None) -> Exported:
    """Export, compare with PyTorch, fit thresholds on the graph's own scores, evaluate if ``labelled``, then write.

    Raises ExportError, RunError, DatasetError, UsageError if ``out`` exists.
    """
    config = run.record.config
    spec = graph_spec(config.input.size_hw)
    held_out_u8 = run.held_out_frames()
    if labelled is not None:
        find_parts(labelled)  # a wrong path shows here, not after the export
    with new_folder(out) as folder:
        (folder / GRAPH_FILE).write_bytes(onnx_graph(run.detector, spec))
        backend = OnnxRuntimeBackend(folder / GRAPH_FILE, spec)
        parity, answers = compare(run.detector, backend, held_out_u8, TOLERANCE_FP32)
        image_threshold, pixel_threshold = fit_thresholds(answers.maps, answers.scores, false_reject_rate)
        precision = PrecisionSpec(
            file=GRAPH_FILE,
            image_threshold=image_threshold,
            pixel_threshold=pixel_threshold,
            parity=parity,
            metrics=None,
        )
        evaluation = None
        if labelled is not None:
            evaluation = _evaluate(run, backend, precision, labelled, out.name, folder / REPORT_FILE)
            precision = msgspec.structs.replace(precision, metrics=evaluation.as_metrics())
        backend.close()
        contract = _contract(run, precision, folder)
        (folder / CONTRACT_FILE).write_bytes(encode_contract(contract))
    return Exported(open_bundle(out), evaluation)


def _evaluate(
    run: FinishedRun, backend: OnnxRuntimeBackend, precision: PrecisionSpec, labelled: Path, name: str, report: Path
) -> Evaluation:
    def predict(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        predictions = [backend.infer(frame[np.newaxis]) for frame in frames_u8]
        maps = np.concatenate([p.anomaly_map[:, 0] for p in predictions])
        return maps, np.concatenate([p.score for p in predictions])

    config = run.record.config
    subject = Subject(
        name=name,
        input=config.input,
        image_threshold=precision.image_threshold,
        predict=predict,
        facts={"Precision": "fp32", "Engine": backend.name, "Model": config.model, "Head": config.head},
    )
    evaluation, judged = evaluate(subject, labelled)
    write_evaluation_report(report, subject, evaluation, judged, labelled)
    return evaluation


def _contract(run: FinishedRun, precision: PrecisionSpec, folder: Path) -> Contract:
    record, config = run.record, run.record.config
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return sealed(
        Contract(
            schema_version=SCHEMA_VERSION,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            input=config.input,
            graph=graph_spec(config.input.size_hw),
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
                split=f"{config.held_out_share:g} of the good images held out by seed",
                seed=config.seed,
            ),
            precisions={"fp32": precision},
            files={p.relative_to(folder).as_posix(): sha256_of_file(p) for p in files},
            versions=record.versions | library_versions("onnx", "onnxruntime", "torch"),
            contract_sha256="0" * 64,
        )
    )
