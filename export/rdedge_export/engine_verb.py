"""``rdedge engine``: builds, or for OpenVINO measures, an engine on the machine that will run it; needs no torch."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Precision
from rdedge.cpu_proof import proof_path
from rdedge.engines import EngineRecord, Flavour, engine_paths
from rdedge.errors import UsageError
from rdedge.text import printable
from rdedge_export.cpu_engine import prove
from rdedge_export.engine_build import build_engine

_NAME_WIDTH = 90
_CPU = "openvino"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that `rdedge export --out` made")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="graph to build (%(default)s)")
    backends = (*get_args(Flavour), _CPU)
    parser.add_argument("--backend", choices=backends, default="tensorrt", help="library (%(default)s)")
    parser.add_argument("--if-needed", action="store_true", help="keep an engine that already fits this device")
    parser.add_argument(
        "--dla",
        type=int,
        choices=(0, 1),
        metavar="CORE",
        help="run on this DLA core (0 or 1) what it takes; fp16 or int8",
    )
    parser.add_argument("--workspace-mb", type=int, metavar="N", help="memory the builder may try; for small boards")


def execute(args: argparse.Namespace) -> int:
    """Build, check, write, and say what was built. Raises RdedgeError."""
    if args.workspace_mb is not None and args.workspace_mb < 1:
        raise UsageError(f"--workspace-mb {args.workspace_mb}", remedy="give a number of megabytes, or leave it out")
    bundle = open_bundle(args.bundle)
    if args.backend == _CPU:
        return _prove(bundle, args)
    record, was_built = build_engine(
        bundle,
        args.precision,
        args.backend,
        workspace_mb=args.workspace_mb,
        dla_core=args.dla,
        if_needed=args.if_needed,
        progress=_show_progress,
        say=_say,
    )
    path, _ = engine_paths(bundle, record.key)
    print(f"{'built' if was_built else 'kept'} {printable(str(path))}, {record.engine_bytes / 1e6:.1f} MB")
    for line in _describe(record):
        print(f"  {line}")
    _say_next(args, record.key.backend)
    return 0


def _prove(bundle: Bundle, args: argparse.Namespace) -> int:
    """For OpenVINO, whose engines are made when they are loaded, so that only a measurement is kept."""
    if args.dla is not None or args.workspace_mb is not None:
        raise UsageError("--dla and --workspace-mb are TensorRT's", remedy="leave them out, or use --backend tensorrt")
    proof, was_measured = prove(bundle, args.precision, if_needed=args.if_needed, say=_say)
    key = proof.key
    print(f"{'measured' if was_measured else 'kept'} {printable(str(proof_path(bundle, key)))}")
    print(f"  OpenVINO {printable(key.version)} on {printable(key.processor)}")
    print(f"  map cosine to FP32 {proof.map_cosine:.4f} or more, {proof.flipped} of {proof.frames} verdicts flip")
    pays = proof.median_ms < proof.onnxruntime_fp32_median_ms
    verdict = "" if pays else ": nothing is gained here, leave out --backend and --precision"
    times = f"{proof.median_ms:.2f} ms a call (median), ONNX Runtime in FP32 {proof.onnxruntime_fp32_median_ms:.2f} ms"
    print(f"  {times}{verdict}")
    print(f"  image threshold refitted to {proof.image_threshold.value:.4g}")
    _say_next(args, _CPU)
    return 0


def _say(text: str) -> None:
    print(f"rdedge: {printable(text)}", file=sys.stderr, flush=True)


def _say_next(args: argparse.Namespace, backend: str) -> None:
    print(
        f"next: rdedge run {printable(str(args.bundle))} --backend {backend} --precision {args.precision}"
        " --source FOLDER_OR_VIDEO"
    )


def _describe(record: EngineRecord) -> list[str]:
    key, check = record.key, record.check
    counts = Counter(record.layer_precisions.values())
    layers = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    typing = "strongly typed" if record.is_strongly_typed else "precisions allowed by flags"
    lines = [
        f"{key.flavour} {key.version} on {printable(key.gpu)} (SM {key.compute_capability}), {record.build_s:.0f} s",
        f"layers: {layers} ({typing})",
        f"within {check.p999_map_share:.2%} of ONNX Runtime's map and {check.max_score_share:.2%} of its score"
        f" on {check.frames} good parts (allowed {check.tolerance_share:.0%} of the map's peak)",
        f"{check.device_ms_median:.2f} ms a frame on the device (median)",
        f"image threshold refitted to {record.image_threshold.value:.4g}",
    ]
    return lines if key.dla_core is None else lines + _places(record)


def _places(record: EngineRecord) -> list[str]:
    """Which layers run where: a heading and a line a layer."""
    on_dla = set(record.dla_layers)
    rows = [("DLA" if name in on_dla else "GPU", kind, name) for name, kind in record.layer_precisions.items()]
    counts = f"{len(on_dla)} on DLA core {record.key.dla_core}, {len(rows) - len(on_dla)} fell back to the GPU"
    shown = [f"  {place}  {kind:<5}  {printable(name)[:_NAME_WIDTH]}" for place, kind, name in rows]
    return [f"layers of the engine (several of the network may be one): {counts}", *shown]


def _show_progress(phase: str, done: int, steps: int) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(
            f"\r{printable(phase)}: {done} of {steps}\x1b[K",
            end="" if done < steps else "\n",
            file=sys.stderr,
            flush=True,
        )
