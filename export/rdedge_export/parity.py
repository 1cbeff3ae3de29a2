"""How far a graph's answers lie from the trained PyTorch model's, on real frames; refused when too far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rdedge.backends import Backend, infer_all
from rdedge.errors import ExportError
from rdedge.fidelity import Parity
from rdedge_train.model import Detector

TOLERANCE_FP32 = 1e-4  # of map and score, where the map's largest value is 1 or less; in proportion above


@dataclass(frozen=True, slots=True)
class Answers:
    """Of a graph on n frames: maps float32 (n, H, W) and scores float32 (n,)."""

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]


def compare(
    detector: Detector, backend: Backend, frames_u8: NDArray[np.uint8], tolerance: float, batch: int = 1
) -> tuple[Parity, Answers]:
    """Run both on frames uint8 (n, H, W, 3), the detector on one at a time, the graph on ``batch`` as on the line.

    Raises ExportError beyond the tolerance.

    The tolerance grows with the maps' largest value: deviations of a position head reach tens, and float32 rounds in
    proportion.
    """
    answer = infer_all(backend, frames_u8, batch)
    maps, scores = answer.anomaly_map[:, 0], answer.score
    map_errors, score_errors, largest = [], [], 1.0
    for frame_u8, anomaly_map, score in zip(frames_u8, maps, scores, strict=True):
        expected_map, expected_score = detector.predict(torch.from_numpy(frame_u8[np.newaxis]))
        map_errors.append(np.abs(anomaly_map - expected_map.numpy()[0, 0]).ravel())
        score_errors.append(abs(float(score) - float(expected_score[0])))
        largest = max(largest, float(expected_map.abs().max()))
    errors = np.concatenate(map_errors)
    tolerance *= largest
    parity = Parity(
        frames=len(frames_u8),
        max_abs_map=float(errors.max()),
        p999_abs_map=float(np.quantile(errors, 0.999)),
        max_abs_score=float(np.max(score_errors)),
        tolerance=tolerance,
    )
    worst = max(parity.max_abs_map, parity.max_abs_score)
    if not worst <= tolerance:
        raise ExportError(
            f"the {backend.name} graph differs from the trained model by {worst:.2e} on {len(frames_u8)} real frames, "
            f"more than {tolerance:.1e}",
            remedy="nothing was written; report this model and the versions of torch and onnxruntime",
        )
    return parity, Answers(maps, scores)
