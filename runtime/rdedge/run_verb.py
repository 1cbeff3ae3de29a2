"""``rdedge run``: one source in, a line a part and a summary out; or a whole line as its file describes it."""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from rdedge.backends import BackendName
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.events import tell
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.checked import Problems
from rdedge.line.config import Page, refusal
from rdedge.line.lane import Lane, LaneCounts, Settings
from rdedge.line.line import Line
from rdedge.line.plan import Plan, make_plan
from rdedge.line.service import serve
from rdedge.page import OperatorPage
from rdedge.sinks import JsonLinesSink, OverlaySink, Sink
from rdedge.sinks.record import new_session
from rdedge.sources import FrameSource, open_source
from rdedge.stream import Policy, Stream
from rdedge.text import printable

_NAME_WIDTH = 32
_SKIPPED_SHOWN = 10
_DRAIN_S = 10.0
_TIMES_KEPT = 100_000  # a camera may run for months
_COLUMNS = f"{{:>6}}  {{:<{_NAME_WIDTH}}}  {{}}  {{:>9}}  {{:<22}}  {{:>8}}"
_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"
_OF_THE_FILE = ("bundle", "source", "out", "precision", "backend", "threshold", "policy", "max_age_ms", "skip_bad")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder that `rdedge export --out` made")
    parser.add_argument("--source", metavar="URI", help="folder of images, an image, a video file, or a camera")
    parser.add_argument("--line", type=Path, metavar="FILE", help="run the line that this TOML file describes instead")
    parser.add_argument("--dry-run", action="store_true", help="with --line: check the file and all it names, then end")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write verdicts.jsonl and pictures of rejects here")
    parser.add_argument("--precision", choices=get_args(Precision), help="graph to run (fp32)")
    parser.add_argument("--backend", choices=get_args(BackendName), help="engine (onnxruntime)")
    parser.add_argument("--threshold", type=float, metavar="X", help="reject above X instead of the bundle's threshold")
    parser.add_argument(
        "--policy",
        choices=get_args(Policy),
        help="every: judge each frame; latest: drop frames that come while one is judged; drop-late: judge none that "
        "is older than --max-age-ms (every)",
    )
    parser.add_argument("--max-age-ms", type=float, metavar="MS", help="of drop-late: the line's cycle time")
    parser.add_argument(
        "--in-flight",
        type=int,
        choices=(1, 2),
        default=1,
        help="frames on the GPU at a time; 2 is for throughput (%(default)s)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used and list them")
    parser.add_argument(
        "--page", nargs="?", const="", metavar="HOST:PORT", help="show the operator page (127.0.0.1:8360: this machine)"
    )


def execute(args: argparse.Namespace) -> int:
    """Judges every frame. Raises RdedgeError; what was judged before is printed and written by then."""
    if args.line is not None:
        given = [name for name in _OF_THE_FILE if getattr(args, name)]
        if given:
            raise UsageError(f"--line with {', '.join(given)}", remedy="write these into the file, or leave --line out")
        return _run_line(args)
    see = "see `rdedge run --help`"
    missing = [name for name, value in (("BUNDLE", args.bundle), ("--source", args.source)) if value is None]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}", remedy=see)
    if args.dry_run:
        raise UsageError("--dry-run checks a line's file", remedy=f"give --line FILE, or leave it out; {see}")
    if (args.policy == "drop-late") != (args.max_age_ms is not None):
        raise UsageError("--policy drop-late and --max-age-ms go together", remedy=f"give both or neither; {see}")
    if args.in_flight > 1 and args.policy in ("latest", "drop-late"):
        raise UsageError(
            f"--in-flight 2 lets a frame wait behind another, which --policy {args.policy} is to avoid",
            remedy="use --policy every, or --in-flight 1",
        )
    return _run_source(args)


def _run_line(args: argparse.Namespace) -> int:
    try:
        plan = make_plan(args.line)
    except Problems as exc:
        if sys.stderr is not None:
            for problem in exc.problems:
                print(f"rdedge: {printable(problem)}", file=sys.stderr)
        raise refusal(args.line, exc) from exc
    for row in _describe(plan):
        print(row)
    if args.dry_run:
        return 0
    page = None if args.page is None else _page(args.page, plan.config.page or Page())
    with Line(plan, page) as line:
        if line.page_url is not None:
            print(f"operator page at {line.page_url}")
        print(f"session {line.session}", flush=True)
        counts = line.run(on_shown=lambda lane, inspection: None)
        for lane, count in zip(line.lanes, counts, strict=True):
            print(f"{lane.name}: {_summary(count)}")
    _raise_fault(line.lanes)
    return 0


def _describe(plan: Plan) -> Iterator[str]:
    """What a line is, a row a camera."""
    config = plan.config
    cameras = f"{len(config.camera)} camera{'s' if len(config.camera) > 1 else ''}"
    yield f"{plan.path}: {cameras}, {config.backend}, {config.precision}, results in {plan.file(config.out)}"
    for camera in config.camera:
        bundle = plan.bundles[config.bundle_of(camera)]
        spec, batch = bundle.precision_spec(config.precision), bundle.contract.graph.batch
        threshold = spec.image_threshold.value if camera.threshold is None else camera.threshold
        sinks = [kind for kind in config.sinks.__struct_fields__ if getattr(config.sinks_of(camera), kind) is not None]
        notes = [f"policy {camera.policy}", f"threshold {threshold:.4g}", f"sinks {', '.join(sinks) or 'none'}"]
        if batch > 1:
            notes.append(f"up to {batch} frames an engine call")
        if camera.k_of_n is not None:
            notes.append(f"{camera.k_of_n[0]} of {camera.k_of_n[1]} frames")
        if camera.tiles is not None:
            notes.append("in tiles: each may reject a good part at the bundle's rate, and drift is not watched")
        yield f"  {camera.name}: {'; '.join(notes)}"


def _run_source(args: argparse.Namespace) -> int:
    session = new_session()
    tally = _Tally()
    with ExitStack() as stack:
        inspector = stack.enter_context(
            Inspector.open(
                args.bundle,
                backend=args.backend or "onnxruntime",
                precision=args.precision or "fp32",
                threshold=args.threshold,
                frames_in_flight=args.in_flight,
            )
        )
        source = open_source(args.source, skip_bad=args.skip_bad)
        if args.out is not None:
            _check_apart(args.out, Path(source.name))
        stream = stack.enter_context(closing(Stream(source, policy=args.policy or "every", max_age_ms=args.max_age_ms)))
        roi_xywh = inspector.bundle.contract.input.roi_xywh
        sinks: list[Sink] = []
        if args.out is not None:
            sinks = [
                JsonLinesSink(args.out / "verdicts.jsonl", session),
                OverlaySink(args.out / "rejects" / session, roi_xywh),
            ]
        if args.page is not None:
            page = stack.enter_context(closing(_open_page(_page(args.page, Page()), session)))
            sinks.append(page.sink("", roi_xywh))
            print(f"operator page at {page.url}", flush=True)
        lane = Lane("", source, stream, inspector, Settings(rules=Rules(), sinks=sinks), on_event=tell, forgives=False)
        table = _Table(Path(source.name), in_colour=_wants_colour())

        def show(lane: Lane, inspection: Inspection) -> None:
            table.show(inspection)
            tally.add(inspection)

        def close_sinks() -> None:
            for sink in sinks:
                sink.close()

        (counts,) = serve([lane], drain_s=_DRAIN_S, on_shown=show, close_sinks=close_sinks)
        _raise_fault([lane])
        _print_summary(tally, counts, source)
    if args.out is not None:
        print(f"written to {args.out / 'verdicts.jsonl'}")
        if counts.rejected:
            print(f"pictures of the rejects in {args.out / 'rejects' / session}")
    return 0


def _raise_fault(lanes: list[Lane]) -> None:
    """What ended a camera's frames, once all others were judged."""
    for lane in lanes:
        if lane.fault is not None:
            raise lane.fault


def _page(address: str, page: Page) -> Page:
    """``page`` at another address; "": at its own."""
    if not address:
        return page
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--page {address}", remedy="give HOST:PORT, e.g. 127.0.0.1:8360")
    return msgspec.structs.replace(page, bind=host.strip("[]"), port=int(port))


def _open_page(page: Page, session: str) -> OperatorPage:
    return OperatorPage(page.bind, page.port, session=session)


def _check_apart(out: Path, source: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"--out {out} lies in the source {source}: its pictures would be judged as parts next time",
            remedy="name a folder elsewhere",
        )


@dataclass(slots=True)
class _Tally:
    """What the summary needs of all parts."""

    times_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES_KEPT))  # from the frame to its verdict

    def add(self, inspection: Inspection) -> None:
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


def _print_summary(tally: _Tally, counts: LaneCounts, source: FrameSource) -> None:
    skipped = source.skipped
    print(f"\n{counts.judged} parts: {counts.judged - counts.rejected} good, {counts.rejected} rejected", end="")
    print(f"; {counts.dropped} frames dropped, {len(skipped)} skipped")
    if tally.times_ms:  # a run may be stopped before its first frame
        median_ms, p95_ms = np.percentile(tally.times_ms, [50, 95])
        print(f"frame to verdict: median {median_ms:.1f} ms, p95 {p95_ms:.1f} ms")
    for error in skipped[:_SKIPPED_SHOWN]:
        print(f"skipped {printable(error.problem)}")
    if len(skipped) > _SKIPPED_SHOWN:
        print(f"skipped {len(skipped) - _SKIPPED_SHOWN} more")


def _summary(counts: LaneCounts) -> str:
    return (
        f"{counts.offered} frames = {counts.judged} judged ({counts.rejected} rejected) + {counts.dropped} dropped "
        f"+ {counts.skipped} skipped"
    )


def _wants_colour() -> bool:
    if sys.stdout is None:  # a process started without
        return False
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
