"""``rdedge selftest``: what only the device can show: engines, camera, sinks and heat, as a table to act on or send."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from rdedge.atomic import write_bytes
from rdedge.board.machine import is_jetson
from rdedge.board.thermal import Heat, read_heat
from rdedge.bundle import Bundle, open_bundle
from rdedge.doctor_verb import examine as examine_machine
from rdedge.engines import Flavour
from rdedge.errors import RdedgeError, UsageError
from rdedge.events import Event
from rdedge.line.heat import HeatWatch
from rdedge.power_verb import state_of
from rdedge.text import printable
from rdedge.versions import library_versions
from rdedge_export.selftest_engine import examine_cpu, examine_engines
from rdedge_export.selftest_line import examine_camera, examine_line
from rdedge_export.selftest_result import Result

_BACKENDS = (*get_args(Flavour), "onnxruntime", "openvino")
_PACKAGES = ("cv2", "onnxruntime", "openvino", "tensorrt", "pycuda")
_ROOT = Path("/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `rdedge export --out` made")
    parser.add_argument("--backend", choices=_BACKENDS, default="tensorrt", help="engine to test (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of load an engine (%(default)s)")
    parser.add_argument(
        "--dla", type=int, choices=(0, 1), metavar="CORE", help="test engines on this DLA core (0, 1) too"
    )
    parser.add_argument("--source", metavar="URI", help="camera to take some frames of")
    parser.add_argument(
        "--line", type=Path, metavar="FILE", help="line whose cameras and sinks to reach; no verdict is sent"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it here, to attach to a report")


def execute(args: argparse.Namespace) -> int:
    """Prints each result as it comes; 0 if none has failed, else 2. Raises BundleError, UsageError, OSError."""
    if not args.seconds > 0:
        raise UsageError(f"--seconds {args.seconds}", remedy="give a time above zero")
    if args.dla is not None and args.backend != "tensorrt":
        raise UsageError(f"--dla with --backend {args.backend}", remedy="DLA is a part of --backend tensorrt")
    bundle = open_bundle(args.bundle)
    results = []
    for result in examine(bundle, args):
        print(f"{result.word}  {result.name:<20}  {printable(result.text)}", flush=True)
        results.append(result)
    failed = sum(result.has_passed is False for result in results)
    if args.json is not None:
        write_bytes(args.json, json.dumps(_report(bundle, args, results), indent=1).encode() + b"\n")
    print(f"\n{sum(result.has_passed is True for result in results)} passed, {failed} failed")
    return 2 if failed else 0


def examine(bundle: Bundle, args: argparse.Namespace) -> Iterator[Result]:
    """Engines, the heat they made, then the camera and the line that were named."""
    before = read_heat(_ROOT)
    events: list[Event] = []
    watch = HeatWatch(events.append, root=_ROOT)
    try:
        if args.backend in ("onnxruntime", "openvino"):
            yield from examine_cpu(bundle, args.backend, args.seconds)
        else:
            yield from examine_engines(bundle, args.backend, args.seconds, args.dla)
        after = read_heat(_ROOT)
    finally:
        watch.close()
    yield heat_result(before, after, events)
    if args.source is not None:
        yield examine_camera("camera", args.source)
    if args.line is not None:
        yield from examine_line(args.line)


def heat_result(before: Heat, after: Heat, events: Iterable[Event]) -> Result:
    """Fails where the board was slowed down for heat; over-current alone is told, as short peaks are usual."""
    warmth = f"{before.hottest} before, {after.hottest} after; " if before.hottest and after.hottest else ""
    if not after.can_tell:
        return Result("heat", None, f"{warmth}this machine does not say when it throttles")
    too_hot = [event.text for event in events if event.kind == "throttling"]
    if too_hot:
        return Result("heat", False, f"{warmth}{too_hot[0]}; cool it, turn up the fan or take a mode of less power")
    risen = {kind: count - before.over_currents.get(kind, 0) for kind, count in after.over_currents.items()}
    peaks = ", ".join(f"{count} x {kind}" for kind, count in risen.items() if count > 0)
    return Result("heat", True, f"{warmth}not slowed down for heat; {peaks or 'no over-current'}")


def _report(bundle: Bundle, args: argparse.Namespace, results: list[Result]) -> dict[str, object]:
    return {
        "passed": not any(result.has_passed is False for result in results),
        "results": [dataclasses.asdict(result) for result in results],
        "options": {"backend": args.backend, "seconds": args.seconds, "dla": args.dla},
        "bundle": {
            "contract_sha256": bundle.contract.contract_sha256,
            "precisions": list(bundle.contract.precisions),
            "versions": bundle.contract.versions,
        },
        "versions": library_versions(*_PACKAGES),
        "machine": {"system": f"{platform.system()} {platform.release()}", "processor": platform.machine()},
        "board": _board(),
        "findings": [dataclasses.asdict(finding) for finding in examine_machine(_ROOT)],
    }


def _board() -> object:
    """Power, clocks and heat of a Jetson; None elsewhere."""
    try:
        return state_of(_ROOT) if is_jetson(_ROOT) else None
    except RdedgeError as exc:
        return str(exc)
