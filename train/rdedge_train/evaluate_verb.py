"""``rdedge evaluate``: figures and report of a run or a bundle on labelled parts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from rdedge.atomic import write_bytes
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.threshold import parts_needed
from rdedge_train.evaluate import Evaluation, JudgedParts, Row, evaluate, parts_to_show
from rdedge_train.report import EN_DASH, write_report
from rdedge_train.subject import Subject, open_subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("subject", type=Path, metavar="RUN_OR_BUNDLE", help="folder made by train or export")
    parser.add_argument(
        "data", type=Path, help="labelled parts, laid out like MVTec AD; a plain folder holds good parts"
    )
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision), help="of a bundle (default fp32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report with charts and pictures")
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be used")


def execute(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    for path in (args.json, args.report):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: no such folder {path.parent}", remedy="make it first")
    subject = open_subject(args.subject, args.precision)
    evaluation, judged = evaluate(subject, args.data, skip_bad=args.skip_bad, progress=_show_progress)
    for problem in evaluation.skipped:
        print(f"skipped {problem}", file=sys.stderr)
    print(format_table(evaluation))
    if args.json is not None:
        write_bytes(args.json, msgspec.json.format(msgspec.json.encode(evaluation), indent=1))
    if args.report is not None:
        write_evaluation_report(args.report, subject, evaluation, judged, args.data)
        print(f"report: {args.report}")
    return 0


def write_evaluation_report(
    path: Path, subject: Subject, evaluation: Evaluation, judged: JudgedParts, data: Path, sections: str = ""
) -> None:
    """The HTML report of one evaluation. Raises UsageError, OSError."""
    limit = evaluation.threshold
    if limit.value <= 0:
        raise UsageError(
            f"{evaluation.subject}: a report needs a threshold above zero, got {limit.value}",
            remedy="train on more good parts that differ from each other",
        )
    facts = subject.facts | {
        "Data": str(data),
        "Parts": f"{evaluation.good_parts} good, {evaluation.defective_parts} defective",
        "Threshold": f"{limit.value:.4f}, from {limit.samples} held-out good parts",
        "False rejects": f"{_percent(evaluation.false_reject_rate)} (asked for {_percent(limit.target_rate)})",
        "Misses": _percent(evaluation.overall.miss_rate),
        "Empty masks": f"{evaluation.empty_masks} (left out of pixel figures)",
    }
    write_report(
        path,
        title=f"Inspection report: {evaluation.subject}",
        facts=facts,
        metrics_rows=[_cells(row) for row in (*evaluation.by_defect, evaluation.overall)],
        scores=judged.scores.astype(np.float64),
        defects=[p.defect for p in judged.parts],
        threshold=limit.value,
        parts=parts_to_show(data, judged, limit.value),
        sections=sections,
    )


def format_table(evaluation: Evaluation) -> str:
    """The figures as text."""
    rows = [_cells(row) for row in (*evaluation.by_defect, evaluation.overall)]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = ["  ".join(f"{key:<{w}}" if i == 0 else f"{key:>{w}}" for i, (key, w) in enumerate(widths.items()))]
    for row in rows:
        cells = (f"{row[key]:<{w}}" if i == 0 else f"{row[key]:>{w}}" for i, (key, w) in enumerate(widths.items()))
        lines.append("  ".join(cells))
    limit = evaluation.threshold
    lines.append(
        f"threshold {limit.value:.4f}: "
        f"rejects {_percent(evaluation.false_reject_rate)} of {evaluation.good_parts} good, "
        f"misses {_percent(evaluation.overall.miss_rate)} of {evaluation.defective_parts} defective parts"
    )
    if limit.expected_rate > limit.target_rate:
        lines.append(
            f"note: {limit.samples} held-out good parts can promise {_percent(limit.expected_rate)} false rejects; "
            f"{_percent(limit.target_rate)} needs {parts_needed(limit.target_rate)}"
        )
    if evaluation.empty_masks:
        lines.append(f"note: {evaluation.empty_masks} empty masks of defective parts left out of pixel figures")
    return "\n".join(lines)


def _cells(row: Row) -> dict[str, str]:
    def figure(value: float | None) -> str:
        return EN_DASH if value is None else f"{value:.4f}"

    return {
        "Defect": row.defect,
        "Parts": str(row.parts),
        "Image AUROC": figure(row.image_auroc),
        "Pixel AUROC": figure(row.pixel_auroc),
        "AU-PRO 0.3": figure(row.au_pro),
        "F1": figure(row.f1),
        "Missed": _percent(row.miss_rate),
    }


def _percent(value: float | None) -> str:
    return EN_DASH if value is None else f"{value:.1%}"


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rjudged {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
