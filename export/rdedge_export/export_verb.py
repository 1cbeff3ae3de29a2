"""``rdedge export``: from a run to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from rdedge.errors import UsageError
from rdedge.threshold import DEFAULT_FALSE_REJECT_RATE
from rdedge_export.bundle_writer import write_bundle
from rdedge_train.evaluate_verb import format_table
from rdedge_train.run_folder import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", type=Path, help="folder made by `rdedge train`")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument(
        "--false-reject-rate",
        type=float,
        default=DEFAULT_FALSE_REJECT_RATE,
        metavar="RATE",
        help="share of good parts the image threshold may reject (default %(default)s)",
    )
    parser.add_argument(
        "--labelled", type=Path, metavar="DATA", help="labelled parts: measure the graph, add the report to the bundle"
    )


def execute(args: argparse.Namespace) -> int:
    """Export and say how faithful the graph is."""
    if not 0.0 < args.false_reject_rate < 1.0:
        raise UsageError(f"--false-reject-rate {args.false_reject_rate}", remedy="give a share between 0 and 1")
    exported = write_bundle(
        open_run(args.run), args.out, false_reject_rate=args.false_reject_rate, labelled=args.labelled
    )
    if exported.evaluation is not None:
        print(format_table(exported.evaluation))
    spec = exported.bundle.contract.precisions["fp32"]
    parity = spec.parity
    size_mb = sum((args.out / name).stat().st_size for name in exported.bundle.contract.files) / 1e6
    print(
        f"bundle {args.out}: {size_mb:.1f} MB; "
        f"map within {parity.max_abs_map:.1e} of PyTorch on {parity.frames} frames; "
        f"threshold {spec.image_threshold.value:.4f}"
    )
    print(f"next: rdedge run {args.out} --source FOLDER_OR_VIDEO")
    return 0
