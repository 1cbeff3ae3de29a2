"""``rdedge evaluate``: figures and report of a run or a bundle on labelled parts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from rdedge.atomic import write_bytes
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.report_page import html_table
from rdedge.text import EN_DASH, printable
from rdedge.threshold import RULE_NAMES, shortage
from rdedge_train.evaluate import ConditionRow, Evaluation, JudgedParts, Row, evaluate, parts_to_show
from rdedge_train.evaluate_each import evaluate_each, subjects_below, table_rows, write_types_report
from rdedge_train.report import write_report
from rdedge_train.robustness import robustness
from rdedge_train.subject import Subject, open_subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "subject", type=Path, metavar="RUN_OR_BUNDLE", help="folder made by train or export, or one that holds several"
    )
    parser.add_argument(
        "data", type=Path, help="labelled parts, laid out like MVTec AD; a plain folder holds good parts"
    )
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision), help="of a bundle (default fp32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report with charts and pictures")
    parser.add_argument(
        "--robustness", action="store_true", help="also under other light, focus, noise, shift; eight times as long"
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be used")


def execute(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    for path in (args.json, args.report):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: no such folder {path.parent}", remedy="make it first")
    names = subjects_below(args.subject)
    if names:
        return _execute_each(args, names)
    subject = open_subject(args.subject, args.precision)
    evaluation, judged = evaluate(subject, args.data, skip_bad=args.skip_bad, progress=_show_progress)
    if args.robustness:
        rows = robustness(subject, judged.parts, _show_progress)
        evaluation = msgspec.structs.replace(evaluation, robustness=rows)
    for problem in evaluation.skipped:
        print(f"skipped {problem}", file=sys.stderr)
    print(format_table(evaluation))
    if args.json is not None:
        write_bytes(args.json, msgspec.json.format(msgspec.json.encode(evaluation), indent=1))
    if args.report is not None:
        write_evaluation_report(args.report, subject, evaluation, judged, args.data)
        print(f"report: {args.report}")
    return 0


def _execute_each(args: argparse.Namespace, names: list[str]) -> int:
    if args.robustness:
        raise UsageError("--robustness is of one run or bundle", remedy="name one of them and its own data")
    result = evaluate_each(
        args.subject,
        names,
        args.data,
        args.precision,
        skip_bad=args.skip_bad,
        say=lambda text: print(text, file=sys.stderr),
    )
    for evaluation in result.types.values():
        for problem in evaluation.skipped:
            print(f"skipped {problem}", file=sys.stderr)
    rows = table_rows(result, figure, percent)
    print("\n".join(text_table(rows)))
    if args.json is not None:
        write_bytes(args.json, msgspec.json.format(msgspec.json.encode(result), indent=1))
    if args.report is not None:
        write_types_report(args.report, f"Inspection report: {printable(args.subject.name)}", rows)
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
        "Threshold": f"{limit.value:.4f}, {RULE_NAMES[limit.rule]} of {limit.parts} held-out good parts",
        "False rejects": f"{percent(evaluation.false_reject_rate)} (asked for {percent(limit.target_rate)}, "
        f"{percent(limit.rate_low)} to {percent(limit.rate_high)} to be expected)",
        "Misses": percent(evaluation.overall.miss_rate),
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
        sections=_robustness_section(evaluation) + sections,
    )


def _robustness_section(evaluation: Evaluation) -> str:
    if not evaluation.robustness:
        return ""
    rows = [_condition_cells(row) for row in evaluation.robustness]
    return (
        "<h2>Under other conditions</h2><p>The same parts at the same threshold, the camera's pictures disturbed "
        f"before all else.</p>{html_table(rows)}"
    )


def text_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a table for a terminal: the first column to the left, the others to the right."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = []
    for row in ({key: key for key in widths}, *rows):
        cells = (f"{row[key]:<{w}}" if i == 0 else f"{row[key]:>{w}}" for i, (key, w) in enumerate(widths.items()))
        lines.append("  ".join(cells))
    return lines


def format_table(evaluation: Evaluation) -> str:
    """The figures as text."""
    lines = text_table([_cells(row) for row in (*evaluation.by_defect, evaluation.overall)])
    limit = evaluation.threshold
    lines.append(
        f"threshold {limit.value:.4f}: "
        f"rejects {percent(evaluation.false_reject_rate)} of {evaluation.good_parts} good, "
        f"misses {percent(evaluation.overall.miss_rate)} of {evaluation.defective_parts} defective parts"
    )
    few = shortage(limit)
    if few is not None:
        lines.append(f"note: {few}")
    if evaluation.empty_masks:
        lines.append(f"note: {evaluation.empty_masks} empty masks of defective parts left out of pixel figures")
    if evaluation.robustness:
        lines += ["", *text_table([_condition_cells(row) for row in evaluation.robustness])]
    return "\n".join(lines)


def _condition_cells(row: ConditionRow) -> dict[str, str]:
    return {
        "Condition": row.condition,
        "Image AUROC": figure(row.image_auroc),
        "AU-PRO 0.3": figure(row.au_pro),
        "False rejects": percent(row.false_reject_rate),
        "Missed": percent(row.miss_rate),
    }


def figure(value: float | None) -> str:
    """A metric as text."""
    return EN_DASH if value is None else f"{value:.4f}"


def _cells(row: Row) -> dict[str, str]:
    return {
        "Defect": row.defect,
        "Parts": str(row.parts),
        "Image AUROC": figure(row.image_auroc),
        "Pixel AUROC": figure(row.pixel_auroc),
        "AU-PRO 0.3": figure(row.au_pro),
        "F1": figure(row.f1),
        "Missed": percent(row.miss_rate),
    }


def percent(value: float | None) -> str:
    """A rate as text."""
    return EN_DASH if value is None else f"{value:.1%}"


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rjudged {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
