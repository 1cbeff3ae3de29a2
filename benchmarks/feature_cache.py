"""What keeping the teacher's features gains: the same training steps with features kept and computed anew."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import ADAM_BETAS, batches
from rdedge_train.loss import distillation_loss
from rdedge_train.model import Detector
from rdedge_train.teachers import load_teacher_weights
from results_file import write_results

PARTS, BATCH = 64, 16


def main() -> None:
    """Alternate epochs of both kinds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["edge-lite0", "resnet18"])
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    rows = ["| model | kept, s an epoch | computed anew | gain | memory kept |", "|---|---|---|---|---|"]
    figures: dict[str, object] = {}
    for model in args.models:
        kept_s, anew_s, kept_mb = measure(model, args.epochs)
        gain = np.median(np.array(anew_s) / np.array(kept_s))
        rows.append(f"| {model} | {np.median(kept_s):.2f} | {np.median(anew_s):.2f} | {gain:.2f} | {kept_mb:.0f} MB |")
        figures[model] = {"kept_s": kept_s, "anew_s": anew_s, "kept_mb": kept_mb}
    table = f"{PARTS} parts of 256x256, batches of {BATCH}, medians of {args.epochs} alternating epochs.\n\n"
    write_results("feature_cache", table + "\n".join(rows), figures, ("torch",))


def measure(model: str, epochs: int) -> tuple[list[float], list[float], float]:
    """Seconds of each epoch with features kept and computed anew, and the megabytes kept."""
    torch.manual_seed(0)
    frames_u8 = np.random.default_rng(0).integers(0, 256, (PARTS, 256, 256, 3), dtype=np.uint8)
    detector = Detector(model, (256, 256))
    load_teacher_weights(detector.teacher, model, "random:0")
    cpu = torch.device("cpu")
    quick = quick_teacher(detector.teacher, (256, 256), cpu)
    kept = TeacherFeatures(quick, frames_u8, cpu, budget_bytes=1 << 40)
    anew = TeacherFeatures(quick, frames_u8, cpu, budget_bytes=0)
    optimiser = torch.optim.Adam(detector.restorer.parameters(), lr=1e-4, betas=ADAM_BETAS)
    times: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(1 + epochs):
        for features in (kept, anew):
            started = time.perf_counter()
            for indices in batches(PARTS, BATCH, seed=0, epoch=epoch):
                teacher = features.batch(indices)
                loss = distillation_loss(teacher, detector.restorer(teacher), "flattened").mean()
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
            if epoch > 0:  # the first warms up
                times[features.is_kept].append(time.perf_counter() - started)
    return times[True], times[False], kept.bytes_needed / 1e6


if __name__ == "__main__":
    main()
