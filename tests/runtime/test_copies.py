"""A picture is not copied on its way to the verdict: what is allocated is of the model's size, not the camera's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rdedge import Inspector
from rdedge.backends import BackendName

MODEL_HW = (48, 64)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "fake"])
@pytest.mark.parametrize("defect_xy", [None, (8, 8)], ids=["good", "bad"])
def test_nothing_of_the_cameras_size_is_allocated(
    bundle: Path, draw_part: Callable[..., np.ndarray], backend: BackendName, defect_xy: tuple[int, int] | None
) -> None:
    """NumPy tells tracemalloc of its arrays, OpenCV's results among them."""
    picture = np.kron(draw_part(defect_xy), np.ones((20, 20, 1), np.uint8))
    with Inspector.open(bundle, backend=backend) as inspector:
        assert inspector.inspect(picture).is_anomalous is (defect_xy is not None)  # what is loaded late is loaded
        tracemalloc.start()
        try:
            verdict = inspector.inspect(picture)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    pixels = MODEL_HW[0] * MODEL_HW[1]
    # Shrunk picture and frame, 3 bytes a pixel each; map 4, and as much again while it is judged; labels of regions 4.
    assert peak < 24 * pixels + 20_000, "the picture has 1200 bytes for each of the model's pixels"
    assert verdict.anomaly_map.nbytes == 4 * pixels
