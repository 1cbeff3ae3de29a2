"""The good images from which INT8 ranges are taken: training images, or a folder's, never a held-out part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rdedge.errors import UsageError
from rdedge_export.precisions import Calibration
from rdedge_train.data import find_images, read_frames
from rdedge_train.run_folder import FinishedRun

MOST_IMAGES = 128  # evenly drawn from more; ranges settle long before


def read_calibration(run: FinishedRun, folder: Path | None, *, most: int | None = MOST_IMAGES) -> Calibration:
    """Preprocessed images of ``folder``, or of the run's training set where it still is; every one drawn is used.

    ``most``: draw evenly so many where there are more; None: take all.
    Images that show the very frame of a held-out part are left out, since the gate judges on those.
    Raises UsageError if none is left, DatasetError or ImageError if one cannot be used.
    """
    record = run.record
    if folder is not None:
        root, paths, source = folder, list(find_images(folder).good_paths), str(folder)
    else:
        root = Path(record.data)
        source = f"training images of {root.name}"  # of the lab's paths the line needs to know nothing
        paths = [root / name for name in record.train_images]
        missing = sum(not path.is_file() for path in paths)
        if missing:
            raise UsageError(
                f"{root}: {missing} of {len(paths)} training images are no longer there to calibrate on",
                remedy="name a folder of good images with --calibration",
            )
    held_out = {frame.tobytes() for frame in run.held_out_frames()}
    frames = read_frames(root, _evenly(paths, most), record.config.input)
    fresh = [i for i, frame in enumerate(frames.frames_u8) if frame.tobytes() not in held_out]
    if not fresh:
        raise UsageError(f"{source}: only held-out parts, nothing to calibrate on", remedy="name other good images")
    if len(fresh) < len(frames.paths):
        frames = frames.only([frames.paths[i] for i in fresh])
    return Calibration(frames_u8=frames.frames_u8, sha256=frames.sha256, source=source)


def _evenly(paths: list[Path], most: int | None) -> list[Path]:
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), most or len(paths))).round().astype(int)
    return [paths[i] for i in chosen]
