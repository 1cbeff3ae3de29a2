"""``rdedge train``: from good images to a run folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from rdedge.contract import InputSpec
from rdedge.errors import UsageError
from rdedge.text import printable
from rdedge_train.allocator import keep_freed_memory
from rdedge_train.config import TrainConfig, default_epochs, default_head, default_loss, default_tolerance
from rdedge_train.distributed import joined_world
from rdedge_train.fit import fit
from rdedge_train.layouts import types_below
from rdedge_train.loss import LossReading
from rdedge_train.model import MODELS, Head
from rdedge_train.tolerance import Tolerance

T = TypeVar("T")
_MAX_DIGITS = 9  # of a number of pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "data", type=Path, help="folder of good images, or one laid out like MVTec AD, AD 2, LOCO, BTAD or VisA"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command again resumes it")
    parser.add_argument(
        "--each", action="store_true", help="DATA holds a folder of each type of part: one run of each below OUT"
    )
    parser.add_argument("--model", default="edge-lite0", help=f"one of {', '.join(MODELS)} (default %(default)s)")
    parser.add_argument("--epochs", type=int, help="passes over the images (default: the model's)")
    add_input_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="images a step, over all processes (default 16)")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of split, initialisation and order (default 0)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of good images for thresholds (default 0.2)")
    parser.add_argument("--loss", choices=get_args(LossReading), help="distillation loss (default: the head's)")
    parser.add_argument("--ocbe", default="mff+oce", choices=["mff+oce", "oce", "none"], help="the paper's ablation")
    parser.add_argument(
        "--head",
        choices=get_args(Head),
        help="plain: map as in the paper; position: distances judged by position; residual: whitened residual vectors "
        "judged by position (default: the model's)",
    )
    parser.add_argument(
        "--tolerate",
        choices=get_args(Tolerance),
        help="light: brightness, focus and grain of the sensor may change; +jig: parts may lie a little off "
        "(default: the head's)",
    )
    parser.add_argument(
        "--teacher-weights", default="imagenet", metavar="FILE|random:SEED", help="instead of the ImageNet weights"
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be used")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides how a picture becomes the model's input."""
    parser.add_argument(
        "--image-size", default="256", metavar="N|HxW", help="model input, multiples of 32 (default 256)"
    )
    parser.add_argument("--roi", metavar="X,Y,W,H", help="region of interest in source pixels (default: all)")


def execute(args: argparse.Namespace) -> int:
    """Train or resume."""
    keep_freed_memory()
    config = _config(args)
    names = types_below(args.data) if args.each else [""]
    with joined_world() as world:
        for name in names:
            data, out = args.data / name, args.out / name
            history = fit(data, out, config, world, skip_bad=args.skip_bad)
            if world.is_first:
                last = history[-1]
                print(
                    f"trained {config.model}: {last.epoch} epochs, loss {last.loss:.4f}; run in {printable(str(out))}"
                )
        if world.is_first:
            further = f"evaluate {args.out} {args.data}" if args.each else f"export {args.out} --out BUNDLE"
            print(f"next: rdedge {printable(further)}")
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    if args.model not in MODELS:
        raise UsageError(f"no model {args.model!r}", remedy=f"use one of: {', '.join(MODELS)}")
    head = args.head or default_head(args.model)
    settings = {
        "model": args.model,
        "input": input_spec(args),
        "ocbe": args.ocbe,
        "loss": args.loss or default_loss(head),
        "head": head,
        "epochs": default_epochs(args.model) if args.epochs is None else args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "held_out_share": args.held_out,
        "teacher_weights": args.teacher_weights,
        "tolerance": args.tolerate or default_tolerance(head),
    }
    return _converted(settings, TrainConfig)


def input_spec(args: argparse.Namespace) -> InputSpec:
    """Of the options of ``add_input_arguments``. Raises UsageError."""
    settings = {
        "size_hw": _size_hw(args.image_size),
        "colour_order": "rgb",
        "resize": "area+linear",
        "roi_xywh": _roi_xywh(args.roi),
    }
    return _converted(settings, InputSpec)


def _converted(settings: Mapping[str, object], kind: type[T]) -> T:
    try:
        return msgspec.convert(settings, kind)
    except msgspec.ValidationError as exc:
        raise UsageError(f"an option is out of range: {exc}", remedy="see `rdedge train --help`") from exc


def _size_hw(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(map(_is_pixel_count, parts)):
        raise UsageError(f"--image-size {text}", remedy="give one number or HEIGHTxWIDTH, e.g. 256 or 256x320")
    return int(parts[0]), int(parts[-1])


def _roi_xywh(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(_is_pixel_count(p.strip()) for p in parts):
        raise UsageError(f"--roi {text}", remedy="give X,Y,W,H in source pixels, e.g. 100,50,800,600")
    return tuple(int(p) for p in parts)


def _is_pixel_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MAX_DIGITS
