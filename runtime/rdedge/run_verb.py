"""``rdedge run``: frames of a folder or a video in, a line a part and a summary out."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import get_args

import numpy as np

from rdedge.backends import BackendName
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.inspector import Inspection, Inspector
from rdedge.sinks import JsonLinesSink, OverlaySink, Sink
from rdedge.sources import FrameSource, open_source
from rdedge.stream import Policy, Stream
from rdedge.text import printable

_NAME_WIDTH = 32
_SKIPPED_SHOWN = 10
_COLUMNS = f"{{:>6}}  {{:<{_NAME_WIDTH}}}  {{}}  {{:>9}}  {{:<22}}  {{:>8}}"
_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `rdedge export --out` made")
    parser.add_argument("--source", required=True, metavar="PATH", help="folder of images, an image, or a video file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write verdicts.jsonl and pictures of rejects here")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="graph to run (%(default)s)")
    parser.add_argument("--backend", choices=get_args(BackendName), default="onnxruntime", help="engine (%(default)s)")
    parser.add_argument("--threshold", type=float, metavar="X", help="reject above X instead of the bundle's threshold")
    parser.add_argument(
        "--policy",
        choices=get_args(Policy),
        default="every",
        help="every: judge each frame; latest: drop frames that come while one is judged (%(default)s)",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        choices=(1, 2),
        default=1,
        help="frames on the GPU at a time; 2 is for throughput (%(default)s)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used and list them")


def execute(args: argparse.Namespace) -> int:
    """Judges every frame. Raises RdedgeError; what was judged before is printed and written by then."""
    if args.in_flight > 1 and args.policy == "latest":
        raise UsageError(
            "--in-flight 2 would let the newest frame wait behind another",
            remedy="use --policy every, or --in-flight 1",
        )
    session = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    tally = _Tally()
    with ExitStack() as stack:
        inspector = stack.enter_context(
            Inspector.open(
                args.bundle,
                backend=args.backend,
                precision=args.precision,
                threshold=args.threshold,
                frames_in_flight=args.in_flight,
            )
        )
        source = open_source(args.source, skip_bad=args.skip_bad)
        if args.out is not None:
            _check_apart(args.out, Path(source.name))
        stream = stack.enter_context(closing(Stream(source, policy=args.policy)))
        roi_xywh = inspector.bundle.contract.input.roi_xywh
        sinks: list[Sink] = []
        if args.out is not None:
            sinks = [
                JsonLinesSink(args.out / "verdicts.jsonl", session),
                OverlaySink(args.out / "rejects" / session, roi_xywh),
            ]
        for sink in sinks:
            stack.enter_context(closing(sink))
        table = _Table(Path(source.name), in_colour=_wants_colour())
        for inspection in inspector.inspect_stream(stream):
            for sink in sinks:
                sink.write(inspection)
            table.show(inspection)
            tally.add(inspection)
        _print_summary(tally, stream.counts.dropped, source)
    if args.out is not None:
        print(f"written to {args.out / 'verdicts.jsonl'}")
        if tally.rejects:
            print(f"pictures of the rejects in {args.out / 'rejects' / session}")
    return 0


def _check_apart(out: Path, source: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"--out {out} lies in the source {source}: its pictures would be judged as parts next time",
            remedy="name a folder elsewhere",
        )


@dataclass(slots=True)
class _Tally:
    """What the summary needs of all parts."""

    rejects: int = 0
    times_ms: list[float] = field(default_factory=list)  # from the frame in hand to its verdict

    def add(self, inspection: Inspection) -> None:
        self.rejects += inspection.verdict.is_anomalous
        self.times_ms.append(inspection.times.total_ms)


class _Table:
    """One aligned line a part, flushed at once: somebody is watching."""

    def __init__(self, root: Path, *, in_colour: bool):
        self._root = root
        self._in_colour = in_colour
        self._has_heading = False

    def show(self, inspection: Inspection) -> None:
        if not self._has_heading:
            print(_COLUMNS.format("part", "name", "verdict", "score", "largest region x,y wxh", "ms"))
            self._has_heading = True
        verdict = inspection.verdict
        word = f"{'REJECT' if verdict.is_anomalous else 'good':<7}"
        if self._in_colour:
            word = f"{_RED if verdict.is_anomalous else _GREEN}{word}{_PLAIN}"
        box = ""
        if verdict.regions:
            x, y, w, h = max(verdict.regions, key=lambda region: region.area_px).box_xywh
            box = f"{x},{y} {w}x{h}"
        name = self._name(inspection.frame.source)
        ms = f"{inspection.times.total_ms:.1f}"
        print(_COLUMNS.format(inspection.frame.index, name, word, f"{verdict.score:.4g}", box, ms), flush=True)

    def _name(self, source: str) -> str:
        """The file below the folder given; a long one keeps its end, which tells it from its neighbours."""
        path = Path(source)
        below = path != self._root and path.is_relative_to(self._root)
        name = printable(str(path.relative_to(self._root)) if below else path.name)
        return name if len(name) <= _NAME_WIDTH else "..." + name[3 - _NAME_WIDTH :]


def _print_summary(tally: _Tally, dropped: int, source: FrameSource) -> None:
    parts, skipped = len(tally.times_ms), source.skipped
    print(f"\n{parts} parts: {parts - tally.rejects} good, {tally.rejects} rejected", end="")
    print(f"; {dropped} frames dropped, {len(skipped)} skipped")
    median_ms, p95_ms = np.percentile(tally.times_ms, [50, 95])
    print(f"frame to verdict: median {median_ms:.1f} ms, p95 {p95_ms:.1f} ms")
    for error in skipped[:_SKIPPED_SHOWN]:
        print(f"skipped {printable(error.problem)}")
    if len(skipped) > _SKIPPED_SHOWN:
        print(f"skipped {len(skipped) - _SKIPPED_SHOWN} more")


def _wants_colour() -> bool:
    if sys.stdout is None:  # a process started without
        return False
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
