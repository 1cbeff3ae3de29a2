"""``rdedge export``: from a run to a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Precision, PrecisionSpec
from rdedge.errors import UsageError
from rdedge.threshold import DEFAULT_FALSE_REJECT_RATE, METHODS, shortage
from rdedge_export import serving
from rdedge_export.bundle_writer import DEFAULT_INT8, Int8Options, write_bundle
from rdedge_export.gate import Budget
from rdedge_train.evaluate_verb import format_table
from rdedge_train.run_folder import FinishedRun, open_run

MAX_BATCH = 64  # as many as a line may have cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", type=Path, help="folder made by `rdedge train`; without --out, a bundle")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to make")
    serving.add_arguments(parser)
    add_bundle_arguments(parser)


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides how a bundle is made of a trained model."""
    parser.add_argument(
        "--false-reject-rate",
        type=float,
        default=DEFAULT_FALSE_REJECT_RATE,
        metavar="RATE",
        help="share of good parts the image threshold may reject (default %(default)s)",
    )
    parser.add_argument(
        "--threshold-rule",
        default="auto",
        choices=METHODS,
        help="of the image threshold: a quantile, or peaks over threshold where parts are few (default %(default)s)",
    )
    parser.add_argument(
        "--labelled", type=Path, metavar="DATA", help="labelled parts: measure the graphs, add the report to the bundle"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="LIST",
        help="of fp32, fp16 and int8, with commas; fp32 is always there, the others must keep to the budget",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="good images for INT8 ranges (default: training images)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="frames of one engine call, for N cameras on one engine; each call then takes the time of N "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--budget",
        default="auroc=0.005,flips=0.01,cosine=0.98",
        metavar="LIST",
        help="what fp16 and int8 may cost: AUROC, share of verdicts, map cosine at least (default %(default)s)",
    )
    parser.add_argument(
        "--int8-transposed",
        action="store_true",
        help="the paper's transposed convolutions in INT8 too: engines smaller by a few percent",
    )
    parser.add_argument(
        "--qat",
        action="store_true",
        help="fine-tune bottleneck and student for INT8; kept if the gate measures it better than calibration alone",
    )


def execute(args: argparse.Namespace) -> int:
    """Export and say how faithful the graph is; of a bundle, make only what other servers need."""
    check_bundle_arguments(args)
    serving.check(args)
    if args.out is not None and args.batch > 1 and args.deepstream is not None:
        raise UsageError("--deepstream with --batch: its configuration is for single pictures", remedy="export twice")
    precision = _precisions(args.precision)[-1]
    bundle = open_bundle(args.run) if args.out is None else write_and_say(open_run(args.run), args)
    serving.write(bundle, precision, args)
    if args.out is not None:
        say_next(args.out)
    return 0


def check_bundle_arguments(args: argparse.Namespace) -> None:
    """What needs no model to be found wrong. Raises UsageError."""
    if not 0.0 < args.false_reject_rate < 1.0:
        raise UsageError(f"--false-reject-rate {args.false_reject_rate}", remedy="give a share between 0 and 1")
    if not 1 <= args.batch <= MAX_BATCH:
        raise UsageError(f"--batch {args.batch}", remedy=f"give 1 to {MAX_BATCH} frames")
    Budget.parse(args.budget)
    if "int8" not in _precisions(args.precision) and _int8_options(args) != DEFAULT_INT8:
        raise UsageError("--int8-transposed or --qat without int8", remedy="add int8 to --precision")


def write_and_say(run: FinishedRun, args: argparse.Namespace) -> Bundle:
    """Make the bundle, tell what it is, and give it."""
    exported = write_bundle(
        run,
        args.out,
        false_reject_rate=args.false_reject_rate,
        threshold_method=args.threshold_rule,
        labelled=args.labelled,
        precisions=_precisions(args.precision),
        calibration=args.calibration,
        budget=Budget.parse(args.budget),
        int8=_int8_options(args),
        batch=args.batch,
    )
    if exported.evaluation is not None:
        print(format_table(exported.evaluation))
    contract = exported.bundle.contract
    spec = contract.precisions["fp32"]
    parity = spec.parity
    size_mb = sum((args.out / name).stat().st_size for name in contract.files) / 1e6
    print(
        f"bundle {args.out}: {size_mb:.1f} MB; "
        f"map within {parity.max_abs_map:.1e} of PyTorch on {parity.frames} frames; "
        f"threshold {spec.image_threshold.value:.4f}"
    )
    few = shortage(spec.image_threshold)
    if few is not None:
        print(f"rdedge: warning: {few}", file=sys.stderr)
    for precision, lower in contract.precisions.items():
        if lower.gate is not None:
            print(_against_fp32(precision, lower, (args.out / lower.file).stat().st_size / 1e6))
    return exported.bundle


def say_next(out: Path) -> None:
    """What to do with a bundle."""
    print(f"next: rdedge run {out} --source FOLDER_OR_VIDEO")


def _int8_options(args: argparse.Namespace) -> Int8Options:
    return Int8Options(with_transposed=args.int8_transposed, qat=args.qat)


def _precisions(text: str) -> list[Precision]:
    known: tuple[Precision, ...] = get_args(Precision)
    asked = text.split(",")
    if not set(asked) <= set(known):
        raise UsageError(f"--precision {text}", remedy=f"give some of {','.join(known)}, with commas")
    return [precision for precision in known if precision in asked]


def _against_fp32(precision: Precision, spec: PrecisionSpec, size_mb: float) -> str:
    gate = spec.gate
    assert gate is not None
    auroc = "" if gate.auroc_change is None else f", AUROC {gate.auroc_change:+.4f}"
    kept_back = ", ".join(gate.layers_kept_back) or "none"
    parts = gate.labelled_frames or gate.good_frames
    tuning = gate.quantisation and gate.quantisation.fine_tuning
    tuned = "" if not tuning else "; fine-tuned" if tuning.is_kept else "; fine-tuning lost and was not kept"
    return (
        f"{precision}: {size_mb:.1f} MB; {gate.verdict_flips:.1%} of {parts} verdicts flip{auroc}, "
        f"map cosine {gate.map_cosine:.4f}; layers kept back: {kept_back}{tuned}"
    )
