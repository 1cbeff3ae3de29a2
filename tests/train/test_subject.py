"""A run and the bundle made from it are evaluated alike; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.bundle import open_bundle
from rdedge.contract import Precision
from rdedge.errors import BundleError, RunError, UsageError
from rdedge.threshold import fit_threshold
from rdedge_train.run_folder import WEIGHTS_FILE, open_run
from rdedge_train.subject import open_subject

Copied = Callable[[Path], Path]
DrawWasher = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def frames_u8(draw_washer: DrawWasher) -> NDArray[np.uint8]:
    return np.stack([draw_washer(300 + i, is_scratched=i % 2 == 1) for i in range(6)])


def test_run_and_bundle_answer_alike(tiny_run: Path, tiny_bundle: Path, frames_u8: NDArray[np.uint8]) -> None:
    (run_maps, run_scores), (maps, scores) = (
        open_subject(path, "fp32").predict(frames_u8) for path in (tiny_run, tiny_bundle)
    )
    assert (maps.shape, maps.dtype, scores.shape, scores.dtype) == ((6, 64, 64), np.float32, (6,), np.float32)
    assert (run_maps.shape, run_maps.dtype, run_scores.dtype) == (maps.shape, np.float32, np.float32)
    np.testing.assert_allclose(run_maps, maps, rtol=0, atol=1e-4)
    np.testing.assert_allclose(run_scores, scores, rtol=0, atol=1e-4)
    assert np.array_equal(scores, maps.max(axis=(1, 2)))


def test_a_runs_threshold_is_fitted_on_its_held_out_parts(tiny_run: Path) -> None:
    subject = open_subject(tiny_run, "fp32")
    _, scores = subject.predict(open_run(tiny_run).held_out_frames())
    assert subject.image_threshold == fit_threshold(scores, 0.01)
    assert subject.facts == {
        "Run": str(tiny_run),
        "Precision": "fp32",
        "Engine": "PyTorch",
        "Model": "edge-lite0",
        "Head": "residual",
        "Bottleneck": "mff+oce",
    }


def test_a_bundles_threshold_is_its_contracts(tiny_bundle: Path) -> None:
    subject = open_subject(tiny_bundle, "fp32")
    contract = open_bundle(tiny_bundle).contract
    assert subject.image_threshold == contract.precisions["fp32"].image_threshold
    assert subject.input == contract.input
    assert subject.facts["Bundle"] == str(tiny_bundle)
    assert subject.facts["Engine"] == "onnxruntime"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_that_are_not_there(tiny_run: Path, tiny_bundle: Path, precision: Precision) -> None:
    with pytest.raises(UsageError) as caught:
        open_subject(tiny_run, precision)
    assert str(caught.value) == f"{tiny_run}: a run has no {precision}; evaluate the bundle made from it"
    with pytest.raises(UsageError) as caught:
        open_subject(tiny_bundle, precision)
    assert str(caught.value).startswith(f"{tiny_bundle}: has no {precision} graph (it has: fp32); ")


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_neither_run_nor_bundle(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        open_subject(path, "fp32")
    remedy = "name a folder made by `rdedge train` or `rdedge export`"
    assert str(caught.value) == f"{path}: neither a run nor a bundle; {remedy}"


def test_damage_is_found_on_opening(tiny_run: Path, tiny_bundle: Path, copied: Copied) -> None:
    run, bundle = copied(tiny_run), copied(tiny_bundle)
    (run / WEIGHTS_FILE).write_bytes(b"")
    (bundle / "model.onnx").write_bytes(b"")
    with pytest.raises(RunError, match=r"weights.safetensors: damaged or not ours"):
        open_subject(run, "fp32")
    with pytest.raises(BundleError, match=r"model.onnx: altered or incomplete"):
        open_subject(bundle, "fp32")
