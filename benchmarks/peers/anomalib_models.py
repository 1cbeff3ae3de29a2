"""In anomalib's environment: our weights in its ReverseDistillation, exported by its own ways.

Usage: ``python anomalib_models.py BACKBONE STATE.pt CALIBRATION_FOLDER OUT``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from anomalib.data import Folder
from anomalib.deploy import CompressionType
from anomalib.models import ReverseDistillation

SIZE_HW = (256, 256)


def main() -> None:
    """``OUT/torch``, ``OUT/openvino`` and ``OUT/int8`` get anomalib's files."""
    backbone, state, images, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    # Without its post-processor the map and score are the network's own, as with the other subjects.
    model = ReverseDistillation(
        backbone,
        pre_trained=False,
        pre_processor=ReverseDistillation.configure_pre_processor(SIZE_HW),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    ).eval()
    weights = torch.load(state, weights_only=True)
    missing, unexpected = model.model.load_state_dict(weights, strict=False)
    never_run = ("bottleneck.conv4.", "bottleneck.bn4.")
    if unexpected or not all(name.startswith(never_run) for name in missing):
        raise SystemExit(f"weights do not fit: {missing} missing, {unexpected} unexpected")
    model.to_torch(out / "torch")
    model.to_openvino(out / "openvino", input_size=SIZE_HW)
    parts = Folder(
        "calibration",
        normal_dir=images,
        test_split_mode="none",
        val_split_mode="from_train",  # it calibrates on its validation images
        val_split_ratio=0.9,
        eval_batch_size=1,
        num_workers=0,
    )
    model.to_openvino(out / "int8", input_size=SIZE_HW, compression_type=CompressionType.INT8_PTQ, datamodule=parts)


if __name__ == "__main__":
    main()
