"""Frame to verdict on this CPU: rdedge's edge and WRN-50 bundles beside the official network run the official way.

The official way: PyTorch eager, each level's map resized with ``align_corners`` and taken to numpy, SciPy's Gaussian,
maximum. Its network here is rdedge_train.paper, which the tests hold equal to the official code's numbers. Weights are
random: they change no time. Rounds are interleaved, one frame of each subject in turn, so that all meet the same noise,
but a small model finds its caches filled with the large ones' weights; so each also gets frames back to back, alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rdedge import Inspector
from rdedge_train.model import Detector
from rdedge_train.sample import SamplePlan, make_sample, render_part
from results_file import write_results
from run_rdedge import run_rdedge

FRAME_HW = (1024, 1024)
Subject = Callable[[NDArray[np.uint8]], float]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--warm-up", type=int, default=5)
    args = parser.parse_args()
    frame_bgr_u8 = render_part(np.random.default_rng(1), FRAME_HW)[0]
    with tempfile.TemporaryDirectory() as work:
        subjects = {
            "official RD4AD WRN-50, PyTorch eager + SciPy": official_pipeline("wide_resnet50_2"),
            "rdedge WRN-50, ONNX Runtime": bundle_pipeline("wide_resnet50_2", Path(work)),
            "rdedge edge-lite0, ONNX Runtime": bundle_pipeline("edge-lite0", Path(work)),
            "rdedge edge-lite0, OpenVINO INT8": int8_pipeline("edge-lite0", Path(work)),
        }
        times_ms = measure(subjects, frame_bgr_u8, rounds=args.rounds, warm_up=args.warm_up)
        alone_ms = {
            name: measure({name: run}, frame_bgr_u8, rounds=args.rounds, warm_up=args.warm_up)[name]
            for name, run in subjects.items()
        }
    report(times_ms, alone_ms)


def official_pipeline(model: str) -> Subject:
    """The official test loop for one frame; resizing by OpenCV, which is faster than its PIL."""
    torch.manual_seed(0)
    detector = Detector(model, (256, 256)).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    @torch.no_grad()
    def run(frame_bgr_u8: NDArray[np.uint8]) -> float:
        rgb = cv2.cvtColor(cv2.resize(frame_bgr_u8, (256, 256)), cv2.COLOR_BGR2RGB)
        image = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255.0 - mean) / std
        teacher = detector.teacher.encode(image)
        student = detector.restorer(teacher)
        total = np.zeros((256, 256))
        for t, s in zip(teacher, student, strict=True):
            level = (1 - F.cosine_similarity(t, s))[:, None]
            total += F.interpolate(level, size=256, mode="bilinear", align_corners=True)[0, 0].numpy()
        return float(gaussian_filter(total, sigma=4).max())

    return run


def bundle_pipeline(model: str, work: Path) -> Subject:
    """Train for one epoch on a few parts, export, open: the path every bundle takes."""
    parts = work / "parts"
    if not parts.exists():
        plan = SamplePlan(train_good=10, test_good=1, test_per_defect=1, video_frames=4, size_hw=(256, 256))
        make_sample(parts, plan)
    run, bundle = work / f"run-{model}", work / f"bundle-{model}"
    weights = ["--teacher-weights", "random:0"]
    for command in (
        ["train", str(parts), "--out", str(run), "--model", model, "--epochs", "1", *weights],
        ["export", str(run), "--out", str(bundle)],
    ):
        run_rdedge(*command)
    inspector = Inspector.open(bundle)
    return lambda frame_bgr_u8: inspector.inspect(frame_bgr_u8).score


def int8_pipeline(model: str, work: Path) -> Subject:
    """After ``bundle_pipeline``: the same run in INT8, measured against FP32 on this machine as OpenVINO asks for.

    A model of one epoch is judged by a wider budget; it takes the same time.
    """
    bundle = work / f"bundle-int8-{model}"
    wide = ["--precision", "fp32,int8", "--budget", "cosine=0.9,flips=0.1"]
    for command in (
        ["export", str(work / f"run-{model}"), "--out", str(bundle), *wide],
        ["engine", str(bundle), "--precision", "int8", "--backend", "openvino"],
    ):
        run_rdedge(*command)
    inspector = Inspector.open(bundle, backend="openvino", precision="int8")
    return lambda frame_bgr_u8: inspector.inspect(frame_bgr_u8).score


def measure(
    subjects: dict[str, Subject], frame_bgr_u8: NDArray[np.uint8], *, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Milliseconds of every round after the warm-up, by subject."""
    times_ms: dict[str, list[float]] = {name: [] for name in subjects}
    for index in range(warm_up + rounds):
        for name, run in subjects.items():
            started = time.perf_counter()
            run(frame_bgr_u8)
            if index >= warm_up:
                times_ms[name].append((time.perf_counter() - started) * 1e3)
    return times_ms


def report(times_ms: dict[str, list[float]], alone_ms: dict[str, list[float]]) -> None:
    """Medians, p95 and the ratio to the first subject, with its spread over rounds; then back to back."""
    base, base_alone = (np.array(next(iter(times.values()))) for times in (times_ms, alone_ms))
    rows = [
        f"{FRAME_HW[1]}x{FRAME_HW[0]} uint8 frame to verdict, model input 256x256, {len(base)} interleaved rounds.",
        "",
        "| subject | median ms | p95 ms | times faster (median of rounds, 5 to 95 %) | back to back: median ms"
        " | times faster (of medians) |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[str, dict[str, object]] = {}
    for name, values in times_ms.items():
        median, p95 = np.percentile(values, [50, 95])
        low, middle, high = np.percentile(base / np.array(values), [5, 50, 95])
        alone = float(np.median(alone_ms[name]))
        rows.append(
            f"| {name} | {median:.1f} | {p95:.1f} | {middle:.2f} ({low:.2f} to {high:.2f})"
            f" | {alone:.1f} | {np.median(base_alone) / alone:.1f} |"
        )
        figures[name] = {"median_ms": median, "p95_ms": p95, "ratio": middle, "rounds_ms": values}
        figures[name] |= {"alone_rounds_ms": alone_ms[name]}
    write_results("frame_to_verdict", "\n".join(rows), {**figures}, ("torch", "onnxruntime", "openvino", "scipy"))


if __name__ == "__main__":
    main()
