"""What a change of light, focus, noise and position costs, by what the head was told to tolerate.

The head of a trained run is fitted anew for each tolerance, the student stays; thresholds come from the same held-out
parts. Rows are the conditions of `rdedge evaluate --robustness`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import msgspec
import torch

from rdedge_train.allocator import keep_freed_memory
from rdedge_train.data import read_frames
from rdedge_train.evaluate import ConditionRow, evaluate
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import fit_head
from rdedge_train.robustness import robustness
from rdedge_train.run_folder import open_run, save_finished, write_record
from rdedge_train.subject import open_subject
from rdedge_train.tolerance import Tolerance
from results_file import write_results

HEADINGS = ("image AUROC", "AU-PRO 0.3", "false rejects", "missed")


def main() -> None:
    """Judge every run under every condition, by every tolerance; write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, action="append", required=True, help="trained run; may be repeated")
    parser.add_argument("--data", type=Path, action="append", required=True, help="of each run: its parts")
    args = parser.parse_args()
    keep_freed_memory()
    tolerances: tuple[Tolerance, ...] = get_args(Tolerance)
    text: list[str] = []
    figures: dict[str, object] = {}
    for run, data in zip(args.run, args.data, strict=True):
        by_tolerance = {tolerance: conditions(run, data, tolerance) for tolerance in tolerances}
        text += [f"{data.name}: {' / '.join(HEADINGS)}", "", table(by_tolerance), ""]
        print("\n".join(text[-4:]), flush=True)
        figures[data.name] = {name: msgspec.to_builtins(rows) for name, rows in by_tolerance.items()}
    write_results("robustness", "\n".join(text), figures, ("torch",))


def conditions(run_folder: Path, data: Path, tolerance: Tolerance) -> list[ConditionRow]:
    """Figures of the run with its head fitted for ``tolerance``, a row a condition."""
    run = open_run(run_folder)
    config = msgspec.structs.replace(run.record.config, tolerance=tolerance)
    train = read_frames(data, [data / name for name in run.record.train_images], config.input)
    cpu = torch.device("cpu")
    teacher = quick_teacher(run.detector.teacher, train.frames_u8.shape[1:3], cpu)
    features = TeacherFeatures(teacher, train.frames_u8, cpu, budget_bytes=0)
    fit_head(run.detector, features, tolerance, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        refitted = Path(folder)
        write_record(refitted, msgspec.structs.replace(run.record, config=config), run.held_out_frames())
        save_finished(refitted, run.detector, run.history)
        subject = open_subject(refitted, "fp32")
        return robustness(subject, evaluate(subject, data)[1].parts)


def table(by_tolerance: dict[Tolerance, list[ConditionRow]]) -> str:
    """A column a tolerance."""
    lines = [f"| condition | {' | '.join(f'`--tolerate {name}`' for name in by_tolerance)} |"]
    lines.append("|---" * (len(by_tolerance) + 1) + "|")
    for rows in zip(*by_tolerance.values(), strict=True):
        lines.append(f"| {rows[0].condition} | {' | '.join(map(cell, rows))} |")
    return "\n".join(lines)


def cell(row: ConditionRow) -> str:
    """The four figures."""

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    figures = (ratio(row.image_auroc), ratio(row.au_pro), percent(row.false_reject_rate), percent(row.miss_rate))
    return " / ".join(figures)


if __name__ == "__main__":
    main()
