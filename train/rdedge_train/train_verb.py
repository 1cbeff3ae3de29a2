"""``rdedge train``: from good images to a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from rdedge.errors import UsageError
from rdedge_train.config import TrainConfig, default_epochs, default_head
from rdedge_train.distributed import joined_world
from rdedge_train.fit import fit
from rdedge_train.model import MODELS

_MAX_DIGITS = 9  # of a number of pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("data", type=Path, help="folder of good images, or one laid out like MVTec AD")
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command again resumes it")
    parser.add_argument("--model", default="edge-lite0", help=f"one of {', '.join(MODELS)} (default %(default)s)")
    parser.add_argument("--epochs", type=int, help="passes over the images (default: the model's)")
    parser.add_argument(
        "--image-size", default="256", metavar="N|HxW", help="model input, multiples of 32 (default 256)"
    )
    parser.add_argument("--roi", metavar="X,Y,W,H", help="region of interest in source pixels (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step, over all processes (default 16)")
    parser.add_argument("--learning-rate", type=float, default=0.005, help="of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of split, initialisation and order (default 0)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of good images for thresholds (default 0.2)")
    parser.add_argument(
        "--loss", default="flattened", choices=["flattened", "per-position"], help="cosine loss reading"
    )
    parser.add_argument("--ocbe", default="mff+oce", choices=["mff+oce", "oce", "none"], help="the paper's ablation")
    parser.add_argument("--head", choices=["plain", "position"], help="map as in the paper, or judged by position")
    parser.add_argument(
        "--teacher-weights", default="imagenet", metavar="FILE|random:SEED", help="instead of the ImageNet weights"
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be used")


def execute(args: argparse.Namespace) -> int:
    """Train or resume."""
    config = _config(args)
    with joined_world() as world:
        history = fit(args.data, args.out, config, world, skip_bad=args.skip_bad)
        if world.is_first:
            last = history[-1]
            print(f"trained {config.model}: {last.epoch} epochs, loss {last.loss:.4f}; run in {args.out}")
            print(f"next: rdedge export {args.out} --out BUNDLE")
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    if args.model not in MODELS:
        raise UsageError(f"no model {args.model!r}", remedy=f"use one of: {', '.join(MODELS)}")
    settings = {
        "model": args.model,
        "input": {
            "size_hw": _size_hw(args.image_size),
            "colour_order": "rgb",
            "resize": "area",
            "roi_xywh": _roi_xywh(args.roi),
        },
        "ocbe": args.ocbe,
        "loss": args.loss,
        "head": args.head or default_head(args.model),
        "epochs": default_epochs(args.model) if args.epochs is None else args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "held_out_share": args.held_out,
        "teacher_weights": args.teacher_weights,
    }
    try:
        return msgspec.convert(settings, TrainConfig)
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
