"""``--qat``: a few epochs of bottleneck and student with INT8 rounding in the loop, kept only if the gate says so.

The teacher is fixed, and rounded too, as the line will run it. Batch norms are folded first, so that what is trained is
what is quantised; the tuned weights then go the way of all weights, through qdq.py.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from rdedge.errors import ExportError
from rdedge.fidelity import FineTuning, RangeMethod
from rdedge_export.fake_quant import FakeQuantised
from rdedge_export.gate import Gatekeeper
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.observers import observe
from rdedge_export.precisions import Calibration, Lowered, Lowering
from rdedge_export.qdq import quantisable, quantised, tensors_to_observe
from rdedge_train.config import TrainConfig
from rdedge_train.features import TeacherFeatures, memory_budget_bytes, quick_teacher
from rdedge_train.fit import ADAM_BETAS, batches, fit_head
from rdedge_train.fold import folded
from rdedge_train.loss import LossReading, distillation_loss
from rdedge_train.model import Detector
from rdedge_train.run_folder import FinishedRun

EPOCHS = 5
_LEAST_GAIN = 0.1  # of what the maps' cosine lacks to 1: less is chance, as every engine rounds in its own order
_LEARNING_RATE = 1e-4  # the weights are trained already: a fiftieth of the usual start
_METHOD: RangeMethod = "percentile-99.99"  # of the ranges trained with; afterwards all are tried again


def int8_with_qat(
    run: FinishedRun,
    keeper: Gatekeeper,
    lowering: Lowering,
    calibration: Calibration,
    train_u8: NDArray[np.uint8],
    *,
    with_transposed: bool,
    batch: int = 1,
) -> Lowered:
    """INT8 by plain calibration or from fine-tuned weights, whichever the gate measures better; both figures are noted.

    ``train_u8``: good frames (n, H, W, 3) to tune on; ``batch``: frames the graphs take at a time. Raises ExportError
    where the gate refuses both.
    """
    plain = _attempt(lowering, calibration, with_transposed)
    try:
        detector = fine_tuned(run, calibration, train_u8, with_transposed=with_transposed)
        tuned = _attempt(Lowering(_graph(detector, run.record.config, batch), keeper), calibration, with_transposed)
    except ExportError as exc:
        tuned = exc
    if isinstance(plain, ExportError) and isinstance(tuned, ExportError):
        raise ExportError(f"{plain.problem}; fine-tuned: {tuned.problem}", remedy=plain.remedy)
    if isinstance(plain, ExportError) or (isinstance(tuned, Lowered) and is_better(tuned, plain)):
        assert isinstance(tuned, Lowered)
        return _told(tuned, plain, tuned)
    return _told(plain, plain, tuned)


def is_better(tuned: Lowered, plain: Lowered) -> bool:
    """Whether the gate measures it better: no verdict and no AUROC worse, and fewer layers kept back, or as many and
    maps of held-out good parts clearly nearer to FP32's."""
    ours, theirs = tuned.gate, plain.gate
    if ours.verdict_flips > theirs.verdict_flips or (ours.auroc_change or 0.0) < (theirs.auroc_change or 0.0):
        return False
    back, back_theirs = len(ours.layers_kept_back), len(theirs.layers_kept_back)
    is_nearer = 1.0 - tuned.good_map_cosine < (1.0 - _LEAST_GAIN) * (1.0 - plain.good_map_cosine)
    return back < back_theirs or (back == back_theirs and is_nearer)


def fine_tuned(
    run: FinishedRun, calibration: Calibration, train_u8: NDArray[np.uint8], *, with_transposed: bool
) -> Detector:
    """The run's detector, batch norms folded, with bottleneck and student tuned to INT8 and its head fitted anew.

    The same seed and frames give the same bits on the same machine. Raises ExportError if the loss is not finite.
    """
    config = run.record.config
    detector = folded(run.detector, torch.zeros((1, *config.input.size_hw, 3), dtype=torch.uint8))
    fp32 = _graph(detector, config)
    layers = quantisable(fp32, with_transposed=with_transposed)
    limits = observe(fp32, tensors_to_observe(fp32, layers), calibration.frames_u8).limits(_METHOD)
    network = FakeQuantised(quantised(fp32, layers, limits).model, detector.state_dict())
    optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, betas=ADAM_BETAS)
    # Lengths count where the head judges residual vectors, directions alone where it takes cosine distances.
    reading: LossReading = "squared" if config.loss == "squared" else "per-position"
    steps, step = EPOCHS * math.ceil(len(train_u8) / config.batch_size), 0
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for indices in batches(len(train_u8), config.batch_size, config.seed, epoch):
            for group in optimiser.param_groups:
                group["lr"] = _LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            frame = torch.from_numpy(train_u8[indices])
            total += _step(detector, network, optimiser, frame, reading) * len(indices)
            step += 1
        if not math.isfinite(total):
            raise ExportError(f"fine-tuning: the loss became {total}", remedy="export without --qat")
        print(f"qat epoch {epoch}/{EPOCHS}  loss {total / len(train_u8):.5f}", file=sys.stderr)
    detector.load_state_dict(detector.state_dict() | network.trained)
    if detector.head is not None:  # as rdedge_train.fit does at the end of a training
        cpu = torch.device("cpu")
        teacher = quick_teacher(detector.teacher, train_u8.shape[1:3], cpu)
        features = TeacherFeatures(teacher, train_u8, cpu, budget_bytes=memory_budget_bytes(processes=1))
        fit_head(detector, features, config.tolerance, config.seed)
    return detector


def _step(
    detector: Detector,
    network: FakeQuantised,
    optimiser: torch.optim.Optimizer,
    frame: torch.Tensor,
    reading: LossReading,
) -> float:
    """One step towards the features that the student restores in FP32: the maps are to stay what they are."""
    with torch.no_grad():
        exact = detector.restorer(detector.teacher(frame))
    loss = distillation_loss(exact, network(frame), reading).mean()
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    return float(loss.detach())


def _graph(detector: Detector, config: TrainConfig, batch: int = 1) -> ModelProto:
    return onnx.load_from_string(onnx_graph(detector, graph_spec(config.input.size_hw, batch)))


def _attempt(lowering: Lowering, calibration: Calibration, with_transposed: bool) -> Lowered | ExportError:
    try:
        return lowering.int8(calibration, with_transposed=with_transposed)
    except ExportError as exc:
        return exc


def _told(kept: Lowered, plain: Lowered | ExportError, tuned: Lowered | ExportError) -> Lowered:
    """The one kept, with what both measured in its contract entry and its notes."""
    plain_cosine, plain_auroc = _figures(plain)
    tuned_cosine, tuned_auroc = _figures(tuned)
    told = FineTuning(
        epochs=EPOCHS,
        is_kept=kept is tuned,
        tuned_map_cosine=tuned_cosine,
        plain_map_cosine=plain_cosine,
        tuned_auroc_change=tuned_auroc,
        plain_auroc_change=plain_auroc,
    )
    quantisation = kept.gate.quantisation
    assert quantisation is not None
    gate = msgspec.structs.replace(kept.gate, quantisation=msgspec.structs.replace(quantisation, fine_tuning=told))
    outcome = "was kept" if told.is_kept else "lost and was not kept"
    note = f"fine-tuning with fake quantisation {outcome}: {_said(tuned)}, against {_said(plain)} by calibration alone"
    return replace(kept, gate=gate, notes=[*kept.notes, note])


def _figures(one: Lowered | ExportError) -> tuple[float | None, float | None]:
    return (None, None) if isinstance(one, ExportError) else (one.good_map_cosine, one.gate.auroc_change)


def _said(one: Lowered | ExportError) -> str:
    if isinstance(one, ExportError):
        return f"refused ({one.problem})"
    auroc = "" if one.gate.auroc_change is None else f", AUROC {one.gate.auroc_change:+.4f}"
    back = len(one.gate.layers_kept_back)
    return f"map cosine {one.good_map_cosine:.5f}, {one.gate.verdict_flips:.2%} flips{auroc}, {back} layers kept back"
