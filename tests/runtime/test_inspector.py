"""One call a picture: the façade gives the verdict that preprocess, engine and judge give, with times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.backends.fake import FakeBackend
from rdedge.bundle import open_bundle
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError, BundleError, ImageError, UsageError
from rdedge.frames import Frame
from rdedge.inspector import Inspector

Draw = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize("backend", ["onnxruntime", "fake"])
def test_good_is_good_and_bad_is_bad(bundle: Path, draw_part: Draw, backend: str) -> None:
    with Inspector.open(bundle, backend=backend) as inspector:  # type: ignore[arg-type]
        good, bad = inspector.inspect(draw_part()), inspector.inspect(draw_part((16, 24)))
    assert not good.is_anomalous and good.score == pytest.approx(0.2) and good.regions == ()
    assert bad.is_anomalous and bad.score == pytest.approx(0.8) and bad.threshold == 0.5
    (region,) = bad.regions
    assert (region.box_xywh, region.area_px) == ((16, 24, 8, 8), 64)
    assert bad.anomaly_map.shape == (48, 64)


def test_boxes_are_in_the_cameras_pixels(write_bundle: Callable[..., Path], draw_part: Draw) -> None:
    with Inspector.open(write_bundle(roi_xywh=(100, 50, 128, 96))) as inspector:
        (region,) = inspector.inspect(draw_part((140, 60), size_hw=(200, 300))).regions
    assert region.box_xywh == (140, 60, 8, 8)


def test_a_frame_keeps_its_origin_and_gets_times(bundle: Path, draw_part: Draw) -> None:
    frame = Frame(image_bgr_u8=draw_part(), index=7, captured_at_s=12.5, source="a.png")
    with Inspector.open(bundle) as inspector:
        inspection = inspector.inspect_frame(frame)
    assert inspection.frame is frame
    times = inspection.times
    assert min(times.preprocess_ms, times.infer_ms, times.judge_ms) > 0
    assert times.total_ms == times.preprocess_ms + times.infer_ms + times.judge_ms


def test_another_threshold_replaces_the_bundles(bundle: Path, draw_part: Draw) -> None:
    with Inspector.open(bundle, threshold=0.9) as inspector:
        verdict = inspector.inspect(draw_part((16, 24)))
    assert not verdict.is_anomalous and verdict.threshold == 0.9
    with Inspector.open(bundle, threshold=0.0) as inspector:
        assert inspector.inspect(draw_part()).is_anomalous


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_passes_every_part_is_refused(bundle: Path, graph: GraphSpec, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"threshold .* would pass every part or none; use a number"):
        Inspector(open_bundle(bundle), FakeBackend(graph), "fp32", threshold)
    with pytest.raises(UsageError):
        Inspector.open(bundle, threshold=threshold)


def test_a_bundle_for_batches_is_refused(write_bundle: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="was exported for batches of 2; export it again for single pictures"):
        Inspector.open(write_bundle(batch=2))


def test_a_picture_that_is_none_is_refused(bundle: Path) -> None:
    with Inspector.open(bundle) as inspector, pytest.raises(ImageError, match="picture: expected a picture uint8"):
        inspector.inspect(None)  # type: ignore[arg-type]


def test_a_closed_inspector_says_so(bundle: Path, draw_part: Draw) -> None:
    inspector = Inspector.open(bundle)
    inspector.close()
    inspector.close()
    with pytest.raises(BackendError, match="closed"):
        inspector.inspect(draw_part())


def test_a_broken_bundle_is_not_opened(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="altered or incomplete"):
        Inspector.open(bundle)
