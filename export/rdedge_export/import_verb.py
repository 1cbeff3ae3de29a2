"""``rdedge import``: from a checkpoint of the official RD4AD code or of anomalib to a bundle."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from rdedge.contract import InputSpec
from rdedge.errors import UsageError
from rdedge.text import printable
from rdedge.versions import library_versions
from rdedge_export.export_verb import add_bundle_arguments, check_bundle_arguments, say_next, write_and_say
from rdedge_train.config import TrainConfig, default_epochs
from rdedge_train.data import find_images, read_usable
from rdedge_train.foreign import read_foreign
from rdedge_train.run_folder import FinishedRun, RunRecord, write_record
from rdedge_train.teachers import state_sha256
from rdedge_train.train_verb import add_input_arguments, input_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("checkpoint", type=Path, help="of the official RD4AD code, or of anomalib (.ckpt, or exported)")
    parser.add_argument(
        "--data", type=Path, required=True, help="good parts for the thresholds; not those it was trained on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    add_input_arguments(parser)
    parser.add_argument(
        "--teacher-weights", default="imagenet", metavar="FILE", help="of an official checkpoint, which holds none"
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be used")
    add_bundle_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Read, fit thresholds, write the bundle."""
    check_bundle_arguments(args)
    if "int8" in args.precision.split(",") and args.calibration is None:
        raise UsageError(
            "INT8 ranges need good images, and none of the training is here", remedy="name some with --calibration"
        )
    with tempfile.TemporaryDirectory() as work:
        run = imported_run(
            args.checkpoint, args.data, input_spec(args), args.teacher_weights, Path(work), skip_bad=args.skip_bad
        )
        print(f"imported {printable(args.checkpoint.name)}: {run.record.config.model}")
        write_and_say(run, args)
    say_next(args.out)
    return 0


def imported_run(
    checkpoint: Path, data: Path, spec: InputSpec, teacher_weights: str, work: Path, *, skip_bad: bool
) -> FinishedRun:
    """A finished run around another program's weights; all good images of ``data`` are its held-out parts.

    ``work``: an empty folder that must outlive the run. Both programs sum the levels' cosine distances, so the head is
    the plain one. Raises WeightsError, DatasetError, ImageError, UsageError.
    """
    paths = find_images(data).good_paths
    detector, model, teacher = read_foreign(checkpoint, spec.size_hw, teacher_weights)
    held_out, bad = read_usable(data, paths, spec, skip_bad=skip_bad)
    for error in bad:
        print(f"skipped {printable(error.problem)}", file=sys.stderr)
    # Of these settings only model, input and head say something of an imported model; the rest are the paper's.
    config = TrainConfig(
        model=model,
        input=spec,
        ocbe="mff+oce",
        loss="flattened",
        head="plain",
        epochs=default_epochs(model),
        batch_size=16,
        learning_rate=0.005,
        seed=0,
        held_out_share=float(np.nextafter(1.0, 0.0)),
        teacher_weights=teacher_weights,
    )
    record = RunRecord(
        config=config,
        teacher=teacher,
        data=printable(str(data)),
        train_images=[],
        train_sha256=hashlib.sha256().hexdigest(),
        held_out_images=[printable(p.relative_to(data).as_posix()) for p in held_out.paths],
        held_out_sha256=held_out.sha256,
        skipped_images=[printable(error.problem) for error in bad],
        versions=library_versions("torch", "torchvision"),
    )
    write_record(work, record, held_out.frames_u8)
    return FinishedRun(work, record, [], detector.eval(), state_sha256(detector.state_dict()))
