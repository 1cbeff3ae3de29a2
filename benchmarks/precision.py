"""What FP16 and INT8 cost and save: file sizes and the gate's figures; and INT8 calibrated on noise, not on images.

Trained runs are judged on labelled parts too; models with random weights, by how near their maps stay to FP32's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from rdedge.contract import Gate
from rdedge_export.calibration import read_calibration
from rdedge_export.gate import DEFAULT_BUDGET, Budget, GateFrames, Gatekeeper
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.precisions import Calibration, Lowered, Lowering
from rdedge_train.data import GOOD, find_images, read_frames
from rdedge_train.model import Detector
from rdedge_train.report import EN_DASH
from rdedge_train.run_folder import FinishedRun, open_run
from rdedge_train.teachers import load_teacher_weights
from results_file import write_results

ANYTHING = Budget(auroc_drop=1.0, verdict_flips=1.0, map_cosine=-1.0)
RATE = 0.01
COLUMNS = (
    "| model | precision | MB | of FP32 | map cosine | rank corr. | flips | AUROC change | kept back | ranges by |"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One FP32 graph with the frames that judge it and the images that calibrate it."""

    name: str
    fp32: bytes
    frames: GateFrames
    calibration: Calibration


def main() -> None:
    """Lower every subject and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="trained run")
    parser.add_argument("--data", type=Path, required=True, help="its data folder, with labelled parts")
    parser.add_argument("--random-models", nargs="*", default=["resnet18"], help="judged on the run's images")
    parser.add_argument("--random-frames", type=int, default=12, help="good parts that judge a random model")
    args = parser.parse_args()
    run = open_run(args.run)
    subjects = [trained(run, args.data)]
    subjects += [untrained(model, run, args.data, args.random_frames) for model in args.random_models]
    rows = [COLUMNS, "|---|---|---|---|---|---|---|---|---|---|"]
    figures: dict[str, object] = {}
    for subject in subjects:
        for label, lowered in measure(subject):
            rows.append(row(subject, label, lowered))
            figures[f"{subject.name} {label}"] = {
                "bytes": lowered.model.ByteSize(),
                "fp32_bytes": len(subject.fp32),
                "gate": gate_as_dict(lowered.gate),
                "notes": lowered.notes,
                "sensitivities": [asdict(one) for one in lowered.sensitivities],
            }
            print(rows[-1], flush=True)
    good, labelled = len(subjects[0].frames.good_u8), len(subjects[0].frames.labelled_u8)
    text = (
        f"The trained run: {good} held-out good and {labelled} labelled parts. Random models: {args.random_frames} "
        "good parts, untrained students, so map fidelity only. `nothing kept back`: INT8 whatever it costs, calibrated "
        "on training images or on Gaussian noise of their mean and spread.\n\n"
    )
    write_results("precision", text + "\n".join(rows), figures, ("onnx", "onnxruntime", "torch"))


def trained(run: FinishedRun, data: Path) -> Subject:
    """A run on its held-out parts and labelled ones."""
    config = run.record.config
    parts = find_images(data).test_parts
    frames = GateFrames(
        good_u8=run.held_out_frames(),
        labelled_u8=read_frames(data, [part.path for part in parts], config.input).frames_u8,
        is_defective=np.array([part.defect != GOOD for part in parts]),
    )
    graph = onnx_graph(run.detector, graph_spec(config.input.size_hw))
    return Subject(config.model, graph, frames, read_calibration(run, data))


def untrained(model: str, run: FinishedRun, data: Path, n: int) -> Subject:
    """A model with random teacher and student, on the run's frames."""
    torch.manual_seed(0)
    size_hw = run.record.config.input.size_hw
    detector = Detector(model, size_hw)
    load_teacher_weights(detector.teacher, model, "random:0")
    good_u8 = run.held_out_frames()[:n]
    frames = GateFrames(good_u8=good_u8, labelled_u8=good_u8[:0], is_defective=np.zeros(0, np.bool_))
    images = read_calibration(run, data)
    fewer = Calibration(frames_u8=images.frames_u8[: 2 * n], sha256=images.sha256, source=images.source)
    return Subject(f"{model} (random)", onnx_graph(detector, graph_spec(size_hw)), frames, fewer)


def measure(subject: Subject) -> Iterator[tuple[str, Lowered]]:
    """FP16 and INT8 within the budget; INT8 without one, calibrated on images and on noise."""
    graph = onnx.load_from_string(subject.fp32)
    lowering = Lowering(graph, Gatekeeper(graph, subject.frames, RATE, DEFAULT_BUDGET))
    yield "fp16", lowering.fp16()
    yield "int8", lowering.int8(subject.calibration)
    unlimited = Lowering(graph, Gatekeeper(graph, subject.frames, RATE, ANYTHING))
    noise = Calibration(frames_u8=noise_like(subject.calibration.frames_u8), sha256="0" * 64, source="noise")
    yield "int8, nothing kept back", unlimited.int8(subject.calibration)
    yield "int8, noise, nothing kept back", unlimited.int8(noise)


def noise_like(frames_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As many frames of Gaussian noise with the images' mean and spread by channel."""
    mean, spread = frames_u8.mean(axis=(0, 1, 2)), frames_u8.std(axis=(0, 1, 2))
    noise = np.random.default_rng(0).normal(mean, spread, frames_u8.shape)
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def row(subject: Subject, label: str, lowered: Lowered) -> str:
    """One line of the table."""
    gate, size = lowered.gate, lowered.model.ByteSize()
    rank = EN_DASH if gate.score_rank_correlation is None else f"{gate.score_rank_correlation:.4f}"
    auroc = EN_DASH if gate.auroc_change is None else f"{gate.auroc_change:+.4f}"
    method = EN_DASH if gate.quantisation is None else gate.quantisation.method
    return (
        f"| {subject.name} | {label} | {size / 1e6:.2f} | {size / len(subject.fp32):.0%} | {gate.map_cosine:.4f} "
        f"| {rank} | {gate.verdict_flips:.1%} | {auroc} | {len(gate.layers_kept_back)} | {method} |"
    )


def gate_as_dict(gate: Gate) -> dict[str, object]:
    """All figures of the gate."""
    return {name: getattr(gate, name) for name in gate.__struct_fields__ if name != "quantisation"}


if __name__ == "__main__":
    main()
