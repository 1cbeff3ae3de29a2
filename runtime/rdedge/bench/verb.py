"""``rdedge bench``: measures a bundle as the line runs it, or compares two measurements."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

from rdedge.backends import BackendName
from rdedge.bench import compare, table
from rdedge.bench.page import write_page
from rdedge.bench.record import write_record
from rdedge.bench.session import GAP_PARTS, Plan, measure
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.sources import is_camera
from rdedge.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder that `rdedge export --out` made")
    parser.add_argument("--source", metavar="URI", help="frames to judge (parts of the bundle, enlarged to 1920x1080)")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="graph (%(default)s)")
    parser.add_argument("--backend", choices=get_args(BackendName), default="onnxruntime", help="engine (%(default)s)")
    parser.add_argument("--frames", type=int, default=1000, help="measured frames (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=50, help="frames before them, reported apart (%(default)s)")
    parser.add_argument(
        "--pace",
        metavar="one|max|FPS",
        help="one: a frame after the last one's verdict; max: through a full queue; FPS: by the clock, newest wins "
        "(one; a camera has its own)",
    )
    parser.add_argument("--idle-gap", type=float, metavar="S", help=f"also {GAP_PARTS} parts S seconds apart")
    parser.add_argument("--keep-warm", action="store_true", help="and again with the engine kept running in the gaps")
    parser.add_argument("--cold-starts", type=int, default=5, help="fresh processes to time (%(default)s; 0: none)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurement here, for --compare")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with histograms and timelines here")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare files of --json, or folders of several runs"
    )
    parser.add_argument("--anyway", action="store_true", help="compare even what was measured on different things")


def execute(args: argparse.Namespace) -> int:
    """Prints the measurement or the comparison. Raises RdedgeError."""
    if args.compare is not None:
        if args.bundle is not None:
            raise UsageError("--compare with a bundle", remedy="compare measurements that were made before")
        if args.json is not None or args.html is not None:
            raise UsageError("--compare with --json or --html", remedy="leave it out: a comparison is only printed")
        return _compare(*args.compare, anyway=args.anyway)
    record = measure(_plan(args))
    for line in table.lines(record):
        print(printable(line))
    if args.json is not None:
        write_record(args.json, record)
        print(f"written to {args.json}")
    if args.html is not None:
        write_page(args.html, record)
        print(f"page in {args.html}")
    return 0


def _compare(path_a: Path, path_b: Path, *, anyway: bool) -> int:
    a, b = compare.read_side(path_a), compare.read_side(path_b)
    different = compare.differences(a, b)
    if different and not anyway:
        raise UsageError(
            f"measured on different things: {'; '.join(different)}",
            remedy="measure both on the same, or compare all the same with --anyway",
        )
    for difference in different:
        print(printable(f"DIFFERENT {difference}"))
    for line in compare.lines(a, b):
        print(printable(line))
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    """The command line as a plan. Raises UsageError."""
    see = "see `rdedge bench --help`"
    if args.bundle is None:
        raise UsageError("the following arguments are required: BUNDLE", remedy=see)
    if args.frames < 1 or args.warm_up < 0 or args.cold_starts < 0:
        raise UsageError(
            f"--frames {args.frames}, --warm-up {args.warm_up}, --cold-starts {args.cold_starts}",
            remedy="measure at least 1 frame; the others may be 0",
        )
    if args.idle_gap is not None and not 0.0 < args.idle_gap < math.inf:
        raise UsageError(f"--idle-gap {args.idle_gap}", remedy="give seconds, e.g. 10")
    if args.keep_warm and args.idle_gap is None:
        raise UsageError("--keep-warm without gaps", remedy="give --idle-gap 10, with and without is measured then")
    is_live = args.source is not None and is_camera(args.source)
    if is_live and (args.pace is not None or args.idle_gap is not None):
        raise UsageError(f"--pace or --idle-gap with {args.source}", remedy="a camera has its own pace: leave it out")
    if args.anyway:
        raise UsageError("--anyway without --compare", remedy="leave it out")
    for path in (args.json, args.html):
        if path is not None and path.is_dir():
            raise UsageError(f"{path}: is a folder", remedy="name the file to write in it")
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path.parent}: no such folder", remedy="make it first")
    return Plan(
        bundle=args.bundle,
        source=args.source,
        precision=args.precision,
        backend=args.backend,
        frames=args.frames,
        warm_up=args.warm_up,
        pace=args.pace,
        idle_gap_s=args.idle_gap,
        keeps_warm=args.keep_warm,
        cold_starts=args.cold_starts,
    )
