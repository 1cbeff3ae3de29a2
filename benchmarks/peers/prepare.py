"""The same weights for every subject: official and anomalib checkpoints, bundles made of them, frames."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdedge.bundle import open_bundle
from rdedge_export.gate import DEFAULT_BUDGET, GateFrames, Gatekeeper
from rdedge_export.precisions import Calibration, Lowering
from rdedge_train.anomaly_map import cosine_distance
from rdedge_train.data import find_images, read_frames
from rdedge_train.model import Detector
from rdedge_train.official import official_state
from rdedge_train.paper import RESNETS, Bottleneck
from rdedge_train.sample import SamplePlan, make_sample, render_part
from rdedge_train.teachers import load_teacher_weights
from run_rdedge import run_rdedge

TEACHER = "random:0"
FRAME_HW, SIZE_HW = (1024, 1024), (256, 256)
GOOD_PARTS = 16  # fit thresholds, judge precisions and calibrate INT8
SMALL_FRAMES = 4  # whose maps are compared


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files that every subject shares. ``parts``: a sample data set; ``frame``, ``small_frames``: BGR uint8 arrays."""

    parts: Path
    frame: Path
    small_frames: Path


def make_inputs(folder: Path) -> Inputs:
    """Rendered parts as ``rdedge demo`` has them; the small frames have the model's size, so no resize differs."""
    inputs = Inputs(folder / "parts", folder / "frame.npy", folder / "small_frames.npy")
    plan = SamplePlan(train_good=GOOD_PARTS, test_good=1, test_per_defect=1, video_frames=4, size_hw=SIZE_HW)
    make_sample(inputs.parts, plan)
    np.save(inputs.frame, render_part(np.random.default_rng(1), FRAME_HW)[0])
    small = [render_part(np.random.default_rng(seed), SIZE_HW)[0] for seed in range(2, 2 + SMALL_FRAMES)]
    np.save(inputs.small_frames, np.stack(small))
    return inputs


def random_detector(model: str) -> Detector:
    """Untrained, with a random teacher: good enough for times."""
    torch.manual_seed(0)
    detector = Detector(model, SIZE_HW).eval()
    load_teacher_weights(detector.teacher, model, TEACHER)
    return detector


def official_weights(model: str, detector: Detector, inputs: Inputs, folder: Path) -> None:
    """``weights.pt`` of the whole network, ``official.pth``, ``by_hand.onnx`` and ``bundle`` in ``folder``."""
    folder.mkdir()
    torch.save(detector.state_dict(), folder / "weights.pt")
    torch.save(official_state(detector.restorer, model), folder / "official.pth")
    _export_by_hand(detector, folder / "by_hand.onnx")
    teacher = folder / "teacher.pth"
    torch.save(detector.teacher.encoder.state_dict(), teacher)
    checkpoint = folder / "official.pth"
    run_rdedge("import", checkpoint, "--data", inputs.parts, "--out", folder / "bundle", "--teacher-weights", teacher)


def anomalib_weights(model: str, detector: Detector, inputs: Inputs, folder: Path) -> None:
    """``anomalib.pt`` for its module, the checkpoint it would have written, and ``bundle`` imported from that."""
    folder.mkdir()
    bottleneck = detector.restorer.bottleneck
    if model == "wide_resnet50_2":  # anomalib's is a plain ResNet-50's also where the rest is wide
        bottleneck = Bottleneck(RESNETS["resnet50"], "mff+oce")
    parts: dict[str, nn.Module] = {
        "encoder.feature_extractor": detector.teacher.encoder,
        "bottleneck": bottleneck,
        "decoder": detector.restorer.student,
    }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save(state, folder / "anomalib.pt")
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, folder / "anomalib.ckpt")
    run_rdedge("import", folder / "anomalib.ckpt", "--data", inputs.parts, "--out", folder / "bundle")


def edge_bundle(inputs: Inputs, folder: Path) -> None:
    """``bundle`` of an edge model after one epoch: the path every bundle takes."""
    folder.mkdir()
    train = ["--model", "edge-lite0", "--epochs", "1", "--teacher-weights", TEACHER]
    run_rdedge("train", inputs.parts, "--out", folder / "run", *train)
    run_rdedge("export", folder / "run", "--out", folder / "bundle")


def lower_to_int8(inputs: Inputs, folder: Path) -> Path:
    """``int8.onnx`` beside ``bundle``: what ``rdedge export --precision int8 --int8-transposed`` writes.

    Layers are not ranked, which is for its report.

    Judged on the small frames, calibrated on the good parts. Raises ExportError if the gate refuses it.
    """
    graph = onnx.load(folder / "bundle" / "model.onnx")
    good_u8 = np.ascontiguousarray(np.load(inputs.small_frames)[..., ::-1])
    frames = GateFrames(good_u8=good_u8, labelled_u8=good_u8[:0], is_defective=np.zeros(0, np.bool_))
    keeper = Gatekeeper(graph, frames, false_reject_rate=0.01, budget=DEFAULT_BUDGET)
    spec = open_bundle(folder / "bundle").contract.input
    parts = read_frames(inputs.parts, find_images(inputs.parts).good_paths, spec)
    images = Calibration(frames_u8=parts.frames_u8, sha256=parts.sha256, source="good parts")
    path = folder / "int8.onnx"
    onnx.save(Lowering(graph, keeper, ranks_layers=False).int8(images, with_transposed=True).model, path)
    return path


class _ByHand(nn.Module):
    """What one exports without thinking of the line: normalised image in, sum of the resized distances out."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, image_NCHW: Tensor) -> Tensor:
        teacher = self.detector.teacher.encode(image_NCHW)
        student = self.detector.restorer(teacher)
        levels = [cosine_distance(t, s) for t, s in zip(teacher, student, strict=True)]
        resized = [F.interpolate(m, size=SIZE_HW, mode="bilinear", align_corners=True) for m in levels]
        return torch.stack(resized).sum(dim=0)


def _export_by_hand(detector: Detector, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _ByHand(detector).eval(),
            (torch.zeros(1, 3, *SIZE_HW),),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
