"""What FP16 and INT8 cost and save: file and engine sizes, the gate's figures, calibration on noise, and fine-tuning.

Trained runs are judged on labelled parts too; models with random weights, by how near their maps stay to FP32's.
Engines are built by TensorRT-RTX where it is installed; it needs no GPU for that.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from rdedge.backends.trt_library import load_tensorrt
from rdedge.contract import Precision
from rdedge.errors import ExportError, MissingExtraError
from rdedge.text import EN_DASH
from rdedge_export.calibration import read_calibration
from rdedge_export.engine import build_plan
from rdedge_export.gate import DEFAULT_BUDGET, Budget, GateFrames, Gatekeeper
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.graph_view import GraphView
from rdedge_export.precisions import Calibration, Lowered, Lowering
from rdedge_export.qat import int8_with_qat
from rdedge_train.data import GOOD, find_images, read_frames
from rdedge_train.model import Detector
from rdedge_train.run_folder import FinishedRun, open_run
from rdedge_train.teachers import load_teacher_weights
from results_file import write_results

ANYTHING = Budget(auroc_drop=1.0, verdict_flips=1.0, map_cosine=-1.0)
RATE = 0.01
HEADINGS = (
    *("model", "precision", "MB", "of FP32", "engine MB", "of FP32", "less kernels", "lowest map cosine"),
    *("mean, good parts", "p99.9 of map", "rank corr.", "flips", "AUROC change", "kept back", "ranges by"),
)
ABOUT = """Map cosine: with FP32's, means taken off; lowest of all parts, and mean over held-out good ones. Nothing kept
back: INT8 whatever it costs. Noise: calibrated on as many frames of Gaussian noise with the images' mean and spread.
Transposed: transposed convolutions in INT8 too. Fine-tuned: what `--qat` writes, plain INT8 where tuning lost. Engines:
TensorRT-RTX's plans; less kernels: both without the source text of their kernels, which the device compiles."""
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{24,}")  # in a plan: kernels' sources


@dataclass(frozen=True, slots=True)
class Subject:
    """One FP32 graph with the frames that judge it and the images that calibrate it; its run, if it was trained."""

    name: str
    fp32: bytes
    frames: GateFrames
    calibration: Calibration
    run: FinishedRun | None
    tuning_u8: NDArray[np.uint8]


def main() -> None:
    """Lower every subject and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, action="append", required=True, help="trained run; may be repeated")
    parser.add_argument("--data", type=Path, action="append", required=True, help="of each run: labelled parts")
    parser.add_argument(
        "--random-models", nargs="*", default=["resnet18", "wide_resnet50_2"], help="judged on the first run's images"
    )
    parser.add_argument("--random-frames", type=int, default=12, help="good parts that judge a random model")
    parser.add_argument("--labelled-every", type=int, default=1, metavar="N", help="take every Nth labelled part")
    args = parser.parse_args()
    pairs = list(zip(map(open_run, args.run), args.data, strict=True))
    subjects = [trained(run, data, args.labelled_every) for run, data in pairs]
    subjects += [untrained(model, *pairs[0], args.random_frames) for model in args.random_models]
    size_of = engine_size()
    rows = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    figures: dict[str, object] = {}
    for subject in subjects:
        engine_fp32 = None if size_of is None else size_of(subject.fp32, "fp32")
        figures[subject.name] = {
            "bytes": len(subject.fp32),
            "engine": None if engine_fp32 is None else asdict(engine_fp32),
            "good_parts": len(subject.frames.good_u8),
            "labelled_parts": len(subject.frames.labelled_u8),
            "calibration_images": len(subject.calibration.frames_u8),
        }
        rows.append(row_fp32(subject, engine_fp32))
        print(rows[-1], flush=True)
        for label, lowered in measure(subject):
            engine = None
            if size_of is not None and isinstance(lowered, Lowered):
                engine = size_of(lowered.model.SerializeToString(), lowered.precision)
            rows.append(row(subject, label, lowered, engine, engine_fp32))
            figures[f"{subject.name} {label}"] = figures_of(lowered, engine)
            print(rows[-1], flush=True)
    judged = "; ".join(
        f"{s.name}: {len(s.frames.good_u8)} held-out good and {len(s.frames.labelled_u8)} labelled parts"
        for s in subjects
    )
    table = (
        f"{ABOUT}\n\nJudged on: {judged}. Random models have untrained students: map fidelity only, "
        "ranks and flips of their scores say nothing.\n\n"
    )
    packages = ("onnx", "onnxruntime", "torch", "tensorrt-rtx-cu12")
    write_results("precision", table + "\n".join(rows), figures, packages)


def trained(run: FinishedRun, data: Path, labelled_every: int) -> Subject:
    """A run with its labelled parts."""
    config = run.record.config
    parts = find_images(data).test_parts[::labelled_every]
    labelled = read_frames(data, [part.path for part in parts], config.input)
    frames = GateFrames(
        good_u8=run.held_out_frames(),
        labelled_u8=labelled.frames_u8,
        is_defective=np.array([part.defect != GOOD for part in parts], dtype=np.bool_),
    )
    graph = onnx_graph(run.detector, graph_spec(config.input.size_hw))
    calibration, tuning = read_calibration(run, data), read_calibration(run, data, most=None)
    return Subject(f"{config.model}, {data.name}", graph, frames, calibration, run, tuning.frames_u8)


def untrained(model: str, run: FinishedRun, data: Path, n: int) -> Subject:
    """A model with random weights on the run's good images."""
    size_hw = run.record.config.input.size_hw
    torch.manual_seed(0)
    detector = Detector(model, size_hw)
    load_teacher_weights(detector.teacher, model, "random:0")
    good_u8 = run.held_out_frames()[:n]
    frames = GateFrames(good_u8=good_u8, labelled_u8=good_u8[:0], is_defective=np.zeros(0, np.bool_))
    images = read_calibration(run, data)
    fewer = Calibration(frames_u8=images.frames_u8[: 2 * n], sha256=images.sha256, source=images.source)
    return Subject(f"{model}, random", onnx_graph(detector, graph_spec(size_hw)), frames, fewer, None, good_u8[:0])


def measure(subject: Subject) -> Iterator[tuple[str, Lowered | ExportError]]:
    """FP16 and INT8 within the budget; INT8 without one, calibrated on images and on noise; or why there is none."""
    graph = onnx.load_from_string(subject.fp32)
    keeper = Gatekeeper(graph, subject.frames, RATE, DEFAULT_BUDGET)
    lowering = Lowering(graph, keeper)
    unlimited = Lowering(graph, Gatekeeper(graph, subject.frames, RATE, ANYTHING), ranks_layers=False)
    images = subject.calibration
    noise = Calibration(frames_u8=noise_like(images.frames_u8), sha256="0" * 64, source="noise")
    yield "fp16", attempt(lowering.fp16)
    yield "int8", attempt(lambda: lowering.int8(images))
    yield "int8, nothing kept back", unlimited.int8(images)
    yield "int8, noise, nothing kept back", unlimited.int8(noise)
    if any(layer.is_transposed for layer in GraphView(graph).layers()):
        yield "int8, transposed, nothing kept back", unlimited.int8(images, with_transposed=True)
    run = subject.run
    if run is not None:
        yield (
            "int8, fine-tuned",
            attempt(lambda: int8_with_qat(run, keeper, lowering, images, subject.tuning_u8, with_transposed=False)),
        )


def attempt(lower: Callable[[], Lowered]) -> Lowered | ExportError:
    """A refusal by the gate is a result as well."""
    try:
        return lower()
    except ExportError as exc:
        return exc


def noise_like(frames_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As many frames of Gaussian noise with the images' mean and spread by channel."""
    mean, spread = frames_u8.mean(axis=(0, 1, 2)), frames_u8.std(axis=(0, 1, 2))
    noise = np.random.default_rng(0).normal(mean, spread, frames_u8.shape)
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class EngineSize:
    """Bytes of a plan, and those of them that are source text of kernels, which TensorRT-RTX compiles on the device."""

    total: int
    kernel_text: int


def engine_size() -> Callable[[bytes, Precision], EngineSize] | None:
    """From graph and precision to its engine's size; None where TensorRT-RTX is not installed."""
    try:
        rtx: Any = load_tensorrt("tensorrt-rtx")
    except MissingExtraError:
        return None

    def size_of(graph: bytes, precision: Precision) -> EngineSize:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph)
            plan = build_plan(
                rtx, path, precision, workspace_mb=4096, timing_cache=b"", progress=lambda what, done, steps: None
            ).engine
        return EngineSize(len(plan), sum(len(text) for text in _TEXT.findall(plan)))

    return size_of


def row_fp32(subject: Subject, engine: EngineSize | None) -> str:
    """The line the others are compared with."""
    cells = [f"{len(subject.fp32) / 1e6:.2f}", "100%", *engine_cells(engine, engine)]
    return line([subject.name, "fp32", *cells, *[EN_DASH] * (len(HEADINGS) - len(cells) - 2)])


def row(
    subject: Subject,
    label: str,
    lowered: Lowered | ExportError,
    engine: EngineSize | None,
    engine_fp32: EngineSize | None,
) -> str:
    """One line of the table; a refusal takes the gate's words."""
    if isinstance(lowered, ExportError):
        return line([subject.name, label, f"refused: {lowered.problem}", *[""] * (len(HEADINGS) - 3)])
    gate, size = lowered.gate, lowered.model.ByteSize()
    quantisation = gate.quantisation
    tuning = None if quantisation is None else quantisation.fine_tuning
    is_untrained = subject.run is None
    if tuning is not None:
        label += " (kept)" if tuning.is_kept else " (lost: plain)"
    return line(
        [
            *(subject.name, label, f"{size / 1e6:.2f}", f"{size / len(subject.fp32):.0%}"),
            *engine_cells(engine, engine_fp32),
            *(f"{gate.map_cosine:.4f}", f"{lowered.good_map_cosine:.4f}", f"{gate.p999_abs_map:.3g}"),
            EN_DASH if is_untrained or gate.score_rank_correlation is None else f"{gate.score_rank_correlation:.4f}",
            EN_DASH if is_untrained else f"{gate.verdict_flips:.1%}",
            EN_DASH if gate.auroc_change is None else f"{gate.auroc_change:+.4f}",
            str(len(gate.layers_kept_back)),
            EN_DASH if quantisation is None else quantisation.method,
        ]
    )


def engine_cells(engine: EngineSize | None, fp32: EngineSize | None) -> list[str]:
    """Size, share of FP32's, and the share without the kernels' text."""
    if engine is None or fp32 is None:
        return [EN_DASH] * 3
    bare = (engine.total - engine.kernel_text) / (fp32.total - fp32.kernel_text)
    return [f"{engine.total / 1e6:.2f}", f"{engine.total / fp32.total:.0%}", f"{bare:.0%}"]


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def figures_of(lowered: Lowered | ExportError, engine: EngineSize | None) -> dict[str, object]:
    """Everything measured, for the file beside the table."""
    if isinstance(lowered, ExportError):
        return {"refused": lowered.problem}
    return {
        "bytes": lowered.model.ByteSize(),
        "engine": None if engine is None else asdict(engine),
        "gate": msgspec.to_builtins(lowered.gate),
        "good_map_cosine": lowered.good_map_cosine,
        "notes": lowered.notes,
        "sensitivities": [asdict(one) for one in lowered.sensitivities],
    }


if __name__ == "__main__":
    main()
