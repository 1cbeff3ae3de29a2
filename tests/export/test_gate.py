"""The gate measures what it says and lets nothing through that costs more than the budget."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scipy.stats import spearmanr

from rdedge.errors import ExportError, UsageError
from rdedge.fidelity import QuantisationSpec
from rdedge_export.gate import (
    DEFAULT_BUDGET,
    Budget,
    GateFrames,
    Gatekeeper,
    put_back_until,
    rank_correlation,
)
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.map_cosine import map_cosines
from rdedge_export.precisions import Calibration, Lowering
from rdedge_train.model import Detector
from rdedge_train.teachers import load_teacher_weights

SIZE_HW = (64, 64)


def darkness(slope: float = 1.0, limit: float = 255.0) -> ModelProto:
    """Frame -> slope times (255 - grey), at each pixel, and its maximum; greys above ``limit`` count as the limit."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["grey"], axes=[3], keepdims=0),
        helper.make_node("Clip", ["grey", "", "limit"], ["clipped"]),
        helper.make_node("Sub", ["full", "clipped"], ["dark"]),
        helper.make_node("Mul", ["dark", "slope"], ["sloped"]),
        helper.make_node("Unsqueeze", ["sloped", "axis"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    constants = {"full": np.float32(255), "slope": np.float32(slope), "limit": np.float32(limit)}
    graph = helper.make_graph(
        nodes,
        "darkness",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 8, 8, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 8, 8]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.array([1]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def flat(*levels: int) -> NDArray[np.uint8]:
    """One flat frame (8, 8, 3) for each level; its score is 255 - level."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels] or [np.zeros((8, 8, 3), np.uint8)])


def keeper(labelled_u8: NDArray[np.uint8], is_defective: list[bool], budget: Budget = DEFAULT_BUDGET) -> Gatekeeper:
    frames = GateFrames(
        good_u8=flat(200, 205, 210, 215), labelled_u8=labelled_u8, is_defective=np.array(is_defective, dtype=bool)
    )
    return Gatekeeper(darkness(), frames, 0.01, budget)


def test_fp32_against_itself_is_no_distance() -> None:
    distance, answers = keeper(flat(210, 100), [False, True]).measure(darkness())
    assert distance.map_cosine == pytest.approx(1.0)
    assert (distance.p999_abs_map, distance.verdict_flips, distance.auroc_change) == (0.0, 0.0, 0.0)
    assert distance.score_rank_correlation == pytest.approx(1.0)
    assert answers.scores.tolist() == [55, 50, 45, 40, 45, 155]


def test_another_scale_flips_nothing_as_the_threshold_is_refitted() -> None:
    gate = keeper(flat(210, 100, 199), [False, True, True])
    distance, _ = gate.measure(darkness(slope=3.0))
    assert distance.flipped == 0 and distance.auroc_change == 0.0
    assert distance.p999_abs_map > 100
    assert gate.accepts(distance)


def test_lost_defects_are_flips_and_auroc() -> None:
    # To this graph all greys above 140 are the same.
    gate = keeper(flat(210, 220, 150, 160), [False, False, True, True])
    distance, _ = gate.measure(darkness(limit=140.0))
    assert distance.auroc_change == pytest.approx(0.5 - 1.0)
    assert distance.flipped == 2 and distance.verdict_flips == 0.5
    assert not gate.accepts(distance)


def test_without_labelled_parts_one_half_judges_the_other() -> None:
    gate = keeper(flat()[:0], [])
    distance, _ = gate.measure(darkness())
    assert distance.flipped == 0 and distance.auroc_change is None
    distance, _ = gate.measure(darkness(limit=190.0))
    assert distance.score_rank_correlation is None, "all scores are equal"
    # FP32 rejects 200 by the limit of 205 and 215, and 205 never; this graph rejects none.
    assert distance.flipped == 1


def test_one_kind_of_labelled_parts_has_no_auroc() -> None:
    distance, _ = keeper(flat(210, 220), [False, False]).measure(darkness())
    assert distance.auroc_change is None and distance.verdict_flips == 0.0


def test_one_flipped_part_is_allowed_and_two_are_not() -> None:
    gate = keeper(flat(210), [False])
    distance, _ = gate.measure(darkness())
    assert gate.accepts(type(distance)(**(fields(distance) | {"flipped": 1, "verdict_flips": 1.0})))
    assert not gate.accepts(type(distance)(**(fields(distance) | {"flipped": 2, "verdict_flips": 1.0})))
    assert gate.accepts(type(distance)(**(fields(distance) | {"flipped": 2, "verdict_flips": 0.01})))
    assert not gate.accepts(type(distance)(**(fields(distance) | {"auroc_change": -0.0051})))
    assert gate.accepts(type(distance)(**(fields(distance) | {"auroc_change": -0.005})))
    assert not gate.accepts(type(distance)(**(fields(distance) | {"map_cosine": 0.97})))


def fields(distance: object) -> dict[str, object]:
    return {name: getattr(distance, name) for name in type(distance).__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_graph_that_answers_nan_is_refused() -> None:
    with pytest.raises(ExportError, match="answers NaN or infinity"):
        keeper(flat(210), [False]).measure(darkness(slope=float("inf")))


def test_one_good_part_is_too_few() -> None:
    frames = GateFrames(good_u8=flat(200), labelled_u8=flat()[:0], is_defective=np.zeros(0, bool))
    with pytest.raises(ExportError, match="needs two held-out good parts"):
        Gatekeeper(darkness(), frames, 0.01, DEFAULT_BUDGET).measure(darkness())


def test_the_contract_gets_what_was_measured() -> None:
    gate = keeper(flat(210, 100), [False, True])
    spec = QuantisationSpec(method="minmax", images=9, images_sha256="a" * 64, source="here", fine_tuning=None)
    entry = gate.as_contract(gate.measure(darkness())[0], ["one"], spec)
    assert (entry.good_frames, entry.labelled_frames, entry.layers_kept_back) == (4, 2, ("one",))
    assert (entry.max_auroc_drop, entry.max_verdict_flips, entry.min_map_cosine) == (0.005, 0.01, 0.98)


def test_cosines_are_of_whole_maps() -> None:
    a = np.array([[[3, 4, 5]], [[1, 0, 2]], [[7, 7, 7]], [[0, 0, 0]]], np.float32)
    b = np.array([[[16, 18, 20]], [[1, 2, 0]], [[7, 7, 7]], [[1, 0, 0]]], np.float32)
    expected = [1.0, np.corrcoef(a[1, 0], b[1, 0])[0, 1], 1.0, 0.0]
    assert map_cosines(a, b).tolist() == pytest.approx(expected)


def test_a_common_offset_does_not_make_maps_alike() -> None:
    random = np.random.default_rng(0)
    a, b = 1 + 0.01 * random.normal(size=(2, 1, 64, 64)).astype(np.float32)
    assert abs(map_cosines(a, b)[0]) < 0.1


def test_rank_correlation_is_scipys() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 20, 200):
        a = random.integers(0, 9, n).astype(np.float32)
        a[0], a[1] = 0, 8
        b = (a + random.integers(0, 5, n)).astype(np.float32)
        b[0] = -1
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(3, np.float32), np.arange(3, dtype=np.float32)) is None


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 20])
def test_the_fewest_layers_are_put_back(most: int) -> None:
    for needed in range(1, most + 3):
        tried: list[int] = []

        def accepts(k: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(k)
            return k >= needed

        assert put_back_until(accepts, most) == (needed if needed <= most else None)
        assert len(set(tried)) == len(tried) and max(tried) <= most


def test_a_budget_is_read_from_the_command_line() -> None:
    assert Budget.parse("auroc=0.005,flips=0.01,cosine=0.98") == DEFAULT_BUDGET
    assert Budget.parse("flips=0") == Budget(verdict_flips=0.0)


@pytest.mark.parametrize("text", ["", "auroc", "auroc=", "auroc=x", "auroc=-1", "auroc=2", "speed=1", "auroc=nan"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"give shares, e\.g\. auroc=0\.005,flips=0\.01,cosine=0\.98"):
        Budget.parse(text)


@pytest.fixture(scope="module")
def edge() -> ModelProto:
    torch.manual_seed(0)
    detector = Detector("edge-lite0", SIZE_HW, head="position")
    for name, values in detector.head.named_buffers():
        values.fill_(1.0 if name.startswith("mean") else 30.0)  # an untrained student's distance is about 1
    load_teacher_weights(detector.teacher, "edge-lite0", "imagenet")
    return onnx.load_from_string(onnx_graph(detector, graph_spec(SIZE_HW)))


def lowering(edge: ModelProto, cosine: float) -> Lowering:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    frames_u8 = coarse.repeat(8, axis=1).repeat(8, axis=2)
    frames = GateFrames(good_u8=frames_u8[:4], labelled_u8=frames_u8[:0], is_defective=np.zeros(0, bool))
    return Lowering(edge, Gatekeeper(edge, frames, 0.01, Budget(map_cosine=cosine, verdict_flips=1.0)))


def calibration() -> Calibration:
    coarse = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    return Calibration(frames_u8=coarse.repeat(8, axis=1).repeat(8, axis=2), sha256="a" * 64, source="squares")


def test_the_worst_layers_go_back_until_it_fits_and_are_named(edge: ModelProto) -> None:
    free = lowering(edge, 0.5).int8(calibration())
    assert free.gate.layers_kept_back == ()
    costs = [one.map_cosine_loss for one in free.sensitivities]
    assert costs == sorted(costs, reverse=True) and len(costs) == 48
    wanted = 1 - (1 - free.gate.map_cosine) / 2
    strict = lowering(edge, wanted).int8(calibration())
    kept = strict.gate.layers_kept_back
    assert kept and kept == tuple(one.layer for one in strict.sensitivities[: len(kept)])
    assert strict.gate.map_cosine >= wanted > free.gate.map_cosine
    weights = {tensor.name for tensor in strict.model.graph.initializer}
    assert all(f"{name}.weight_fp16" in weights and f"{name}.weight_int8" not in weights for name in kept)
    assert strict.gate.quantisation is not None and strict.gate.quantisation.images == 4
