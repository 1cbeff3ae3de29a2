"""The part of ``rdedge export`` that makes folders for other servers: NVIDIA Triton and DeepStream."""

from __future__ import annotations

import argparse
from pathlib import Path

from rdedge.atomic import refuse_existing
from rdedge.bundle import Bundle
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.text import printable
from rdedge_export.deepstream import write_deepstream
from rdedge_export.triton import write_triton


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rdedge export`` for other servers."""
    parser.add_argument("--triton", type=Path, metavar="DIR", help="make a Triton model repository of it, too")
    parser.add_argument("--deepstream", type=Path, metavar="DIR", help="make a DeepStream configuration of it, too")


def check(args: argparse.Namespace) -> None:
    """Before minutes are spent. Raises UsageError if a folder is there already, or nothing is asked for."""
    targets = [target for target in (args.triton, args.deepstream) if target is not None]
    for target in targets:
        refuse_existing(target)
    if args.out is None and not targets:
        raise UsageError("nothing to make", remedy="add --out BUNDLE; of a bundle, --triton DIR or --deepstream DIR")


def write(bundle: Bundle, precision: Precision, args: argparse.Namespace) -> None:
    """Make the folders asked for, and say so. Raises UsageError, ExportError, BackendError, OSError."""
    if args.triton is not None:
        engine = write_triton(bundle, precision, args.triton)
        plan = "" if engine is None else f", and an engine of TensorRT {engine.key.version} on {engine.key.gpu}"
        print(f"Triton {printable(str(args.triton))}: {precision} graph{printable(plan)}; see its README.txt")
    if args.deepstream is not None:
        distance = write_deepstream(bundle, precision, args.deepstream)
        folder = printable(str(args.deepstream))
        print(f"DeepStream {folder}: {precision} graph, within {distance:.1e} of the bundle's; see its README.txt")
