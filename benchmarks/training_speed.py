"""Time to an image AUROC: ``rdedge train`` beside the official loop and anomalib's ReverseDistillation, one at a time.

The same ResNet-18 with the same ImageNet teacher, parts, batch size and threads, each trained as its program does it;
the clock counts reading, the teacher's passes and training, and stands still while test parts are judged. edge-lite0 is
what ``rdedge train`` takes by itself; its learning rate falls to zero at the end, so each length is a run of its own.
Where torchvision's weights cannot be downloaded, a file of them serves: the encoder up to its third stage is enough.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.environments import ROOT, make_environment
from rdedge.text import EN_DASH
from rdedge_train.data import find_images
from rdedge_train.sample import SamplePlan, make_sample
from rdedge_train.teachers import Teacher, load_teacher_weights
from results_file import write_results

TRAINER = Path(__file__).resolve().parent / "peers" / "trainer.py"
LEVELS = (0.6, 0.7, 0.8, 0.9, 0.95)
Curve = list[dict[str, float]]  # epoch, clock_s, auroc


def main() -> None:
    """Train, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--teacher", default="imagenet", help="as rdedge train --teacher-weights; random:0 needs no file"
    )
    parser.add_argument("--data", type=Path, help="folder laid out like MVTec AD, instead of rendered parts")
    parser.add_argument("--parts", type=int, default=64, help="good parts to train on")
    parser.add_argument("--test-parts", type=int, default=12, help="of each defect, and twice as many good ones")
    parser.add_argument("--limit-s", type=float, default=180.0, help="of training, for each program")
    parser.add_argument("--epochs", type=int, default=60, help="at most")
    parser.add_argument("--target", type=float, default=0.95, help="AUROC at which a training ends")
    parser.add_argument("--edge-epochs", type=int, nargs="*", default=[2, 5, 10])
    parser.add_argument("--torch", nargs="+", default=["torch", "torchvision"], help="pip's arguments for anomalib's")
    parser.add_argument("--environments", type=Path, help="folder to keep anomalib's environment in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        environments = args.environments or folder
        environments.mkdir(parents=True, exist_ok=True)
        theirs = make_environment(
            environments / "anomalib",
            ["anomalib", "openvino", *args.torch],
            ["nncf", "onnx", "onnxscript", "onnxruntime", "msgspec", "safetensors"],
            "import anomalib",
        )
        data = args.data or render(folder / "parts", args.parts, args.test_parts)
        images = find_images(data)
        teacher = write_teacher(args.model, args.teacher, folder / "teacher.pth")
        spec = {"data": str(data.absolute()), "teacher": str(teacher), "epochs": args.epochs, "model": args.model}
        spec |= {"limit_s": args.limit_s, "target": args.target}
        ours = Path(sys.executable)
        curves = {
            f"rdedge {args.model}": train(ours, spec | {"kind": "rdedge_constant_rate"}),
            f"official {args.model}": train(ours, spec | {"kind": "official"}),
            f"anomalib {args.model}": train(theirs.python, spec | {"kind": "anomalib"}),
        }
        edge = spec | {"kind": "rdedge_edge", "model": "edge-lite0"}
        edge_runs = [train(ours, edge | {"epochs": epochs})[0] | {"epochs": epochs} for epochs in args.edge_epochs]
    table = "\n".join([*curve_rows(curves), "", *edge_rows(edge_runs)])
    about = " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    facts = f"{len(images.good_paths)} good parts, {len(images.test_parts)} test parts, all brought to 256x256."
    theme = "training_speed" if args.data is None else f"training_speed_{args.data.name}"
    write_results(theme, f"{about} {facts}\n\n{table}", {"curves": curves, "edge": edge_runs}, ("torch",))


def render(folder: Path, good: int, of_each: int) -> Path:
    """Parts as ``rdedge demo`` has them."""
    plan = SamplePlan(
        train_good=good, test_good=2 * of_each, test_per_defect=of_each, video_frames=4, size_hw=(256, 256)
    )
    make_sample(folder, plan)
    return folder


def write_teacher(model: str, source: str, path: Path) -> Path:
    """The encoder's state dict in torchvision's names, for all three alike."""
    teacher = Teacher(model)
    load_teacher_weights(teacher, model, source)
    torch.save(teacher.encoder.state_dict(), path)
    return path


def train(python: Path, spec: dict[str, Any]) -> Curve:
    """One process; what it told after each epoch."""
    path = os.pathsep.join(str(ROOT / part) for part in ("runtime", "train", "export"))
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [str(python), str(TRAINER), json.dumps(spec)],
            capture_output=True,
            text=True,
            cwd=work,
            env=os.environ | {"PYTHONPATH": path},
        )
    if done.returncode != 0:
        raise SystemExit(f"{spec['kind']} failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def seconds_to(curve: Curve, level: float) -> float | None:
    """When it first had this AUROC; None: never."""
    return next((point["clock_s"] for point in curve if point["auroc"] >= level), None)


def curve_rows(curves: dict[str, Curve]) -> list[str]:
    """A row a program: seconds an epoch, the best AUROC, and seconds to each level."""
    heads = ["program", "s an epoch", "best AUROC", *(f"s to {level}" for level in LEVELS)]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, curve in curves.items():
        clocks = [0.0, *(point["clock_s"] for point in curve)]
        times = [seconds_to(curve, level) for level in LEVELS]
        cells = [name, f"{np.median(np.diff(clocks)):.2f}", f"{max(point['auroc'] for point in curve):.3f}"]
        rows.append(f"| {' | '.join([*cells, *(EN_DASH if s is None else f'{s:.1f}' for s in times)])} |")
    return rows


def edge_rows(runs: list[dict[str, float]]) -> list[str]:
    """A row a length of run."""
    rows = ["| rdedge edge-lite0, whole run of | s | AUROC |", "|---|---|---|"]
    return [*rows, *(f"| {run['epochs']} epochs | {run['clock_s']:.1f} | {run['auroc']:.3f} |" for run in runs)]


if __name__ == "__main__":
    main()
