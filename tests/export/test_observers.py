"""Ranges are those of the values seen, over every image asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rdedge.errors import ExportError
from rdedge.fidelity import RangeMethod
from rdedge_export.observers import RANGE_METHODS, Observed, largest_magnitudes, observe

SIZE_HW = (16, 16)


@pytest.fixture
def graph() -> ModelProto:
    """``f``: the frame as float32; ``shifted``: f - 200; ``nothing``: f * 0; ``root``: NaN below 0."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "level"], ["shifted"]),
        helper.make_node("Mul", ["f", "zero"], ["nothing"]),
        helper.make_node("Sqrt", ["shifted"], ["root"]),
        helper.make_node("ReduceMax", ["f"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    values = {"level": np.float32(200), "zero": np.float32(0)}
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *SIZE_HW, 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "observed", [frame], [score], constants)
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def frames_u8() -> NDArray[np.uint8]:
    frames_u8 = np.random.default_rng(3).integers(0, 101, (5, *SIZE_HW, 3), dtype=np.uint8)
    frames_u8[4, 3, 3, 0] = 250
    return frames_u8


def test_the_largest_magnitude_counts_whatever_its_sign_and_frame(
    graph: ModelProto, frames_u8: NDArray[np.uint8]
) -> None:
    frames_u8[1, 0, 0, 0] = 0
    assert largest_magnitudes(graph, ["f", "shifted", "nothing"], frames_u8) == {
        "f": 250.0,
        "shifted": 200.0,
        "nothing": 0.0,
    }


def test_every_value_of_every_image_is_counted(graph: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    observed = observe(graph, ["f", "shifted"], frames_u8)
    assert observed.images == 5
    assert {name: counts.sum() for name, counts in observed.counts.items()} == {
        "f": frames_u8.size,
        "shifted": frames_u8.size,
    }
    assert observed.limits("minmax") == observed.absmax


def test_a_percentile_is_numpys_to_a_bin(graph: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    limit = observe(graph, ["f"], frames_u8).limits("percentile-99.9")["f"]
    assert limit == pytest.approx(np.quantile(frames_u8, 0.999), abs=250 / 2048 + 1e-6)
    assert limit < 101


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_a_tensor_of_zeros_has_a_scale_too(
    graph: ModelProto, frames_u8: NDArray[np.uint8], method: RangeMethod
) -> None:
    assert observe(graph, ["nothing"], frames_u8).limits(method)["nothing"] == 1.0


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_limits_are_positive_and_within_what_was_seen(method: RangeMethod) -> None:
    random = np.random.default_rng(0)
    for counts in (random.integers(0, 9, 2048), np.eye(1, 2048, 2047)[0] * 5, np.eye(1, 2048)[0] * 5):
        observed = Observed(absmax={"t": 4.0}, counts={"t": counts.astype(np.int64)}, images=1)
        assert 0.0 < observed.limits(method)["t"] <= 4.0


def test_entropy_cuts_off_a_lone_outlier_but_not_an_even_spread() -> None:
    bell = np.histogram(np.abs(np.random.default_rng(0).normal(size=200_000)), 2048, (0, 40.0))[0]
    bell[-1] = 1
    even = np.full(2048, 1000)
    observed = Observed(absmax={"bell": 40.0, "even": 40.0}, counts={"bell": bell, "even": even}, images=1)
    limits = observed.limits("entropy")
    assert 2.0 < limits["bell"] < 6.0
    assert limits["even"] == 40.0


def test_entropy_is_the_least_divergence_by_the_book() -> None:
    """Compared with the textbook written out bin by bin."""
    counts = np.random.default_rng(5).poisson(300 * np.exp(-np.arange(2048) / 150.0)).astype(np.int64)
    counts[0] = 10_000
    plain = counts.astype(float)
    plain[0] = plain[1]
    divergences = {}
    for bins in range(128, 2049, 8):
        p = plain[:bins].copy()
        q = np.zeros(bins)
        for level in range(128):
            start, stop = level * bins // 128, (level + 1) * bins // 128
            used = [k for k in range(start, stop) if p[k] > 0]
            for k in used:
                q[k] = p[start:stop].sum() / len(used)
        p[-1] += plain[bins:].sum()
        if any(q[k] == 0 for k in range(bins) if p[k] > 0):
            continue
        p, q = p / p.sum(), q / q.sum()
        divergences[bins] = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    best = min(divergences, key=lambda bins: divergences[bins])
    observed = Observed(absmax={"t": 2048.0}, counts={"t": counts}, images=1)
    assert observed.limits("entropy")["t"] == best


def test_a_frame_that_fails_ends_it(graph: ModelProto) -> None:
    with pytest.raises(ExportError, match="calibration image 0 of 2 failed"):
        observe(graph, ["f"], np.zeros((2, 8, 8, 3), np.uint8))


def test_no_image_is_not_a_short_calibration(graph: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    with pytest.raises(ExportError, match="no calibration image; give good images with --calibration"):
        observe(graph, ["f"], frames_u8[:0])


def test_a_value_that_is_not_finite_is_named(graph: ModelProto, frames_u8: NDArray[np.uint8]) -> None:
    with pytest.raises(ExportError, match="tensor root holds NaN or infinity"):
        observe(graph, ["root"], frames_u8)
