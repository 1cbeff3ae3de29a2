"""``--batch N``: a graph for N frames gives each the answer that it gets alone, in every precision, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from msgspec.structs import asdict
from numpy.typing import NDArray

from rdedge.bundle import Bundle, open_bundle
from rdedge.cli import main
from rdedge.contract import Precision
from rdedge.fidelity import Gate, QuantisationSpec
from rdedge.frames import Frame
from rdedge.inspector import Inspector
from rdedge_export.graph_view import GraphView
from rdedge_export.observers import observe
from rdedge_train.evaluate import evaluate
from rdedge_train.subject import open_subject

BATCH = 3
Draw = Callable[..., NDArray[np.uint8]]
Refused = Callable[..., str]


Bundles = dict[int, Bundle]


def exported(run: Path, folder: Path, precisions: str) -> Bundles:
    """Of one run, for single frames and for three at a time."""
    command = ["export", str(run), "--false-reject-rate", "0.1", "--precision", precisions, "--budget"]
    for batch in (1, BATCH):
        assert main([*command, "cosine=0.5,flips=1", "--out", str(folder / str(batch)), "--batch", str(batch)]) == 0
    return {batch: open_bundle(folder / str(batch)) for batch in (1, BATCH)}


@pytest.fixture(scope="module")
def bundles(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return exported(tiny_run, tmp_path_factory.mktemp("batch"), "fp32")


def calibrated_from(gate: Gate) -> QuantisationSpec | None:
    """But for the ranges' method, which is chosen by cosines that may lie as near to each other as roundings do."""
    spec = gate.quantisation
    return None if spec is None else msgspec.structs.replace(spec, method="minmax")


def check_figures(bundles: Bundles, precision: Precision) -> None:
    """The held-out parts are two, the batch three: what fills it up counts nowhere."""
    one, many = (bundles[batch].contract.precisions[precision] for batch in (1, BATCH))
    assert many.image_threshold.value == pytest.approx(one.image_threshold.value, rel=1e-3)
    assert many.pixel_threshold.value == pytest.approx(one.pixel_threshold.value, rel=1e-3)
    assert many.image_threshold.parts == one.image_threshold.parts == 2 == many.good_scores.samples
    assert many.good_scores.quantiles == pytest.approx(one.good_scores.quantiles, rel=1e-3)
    assert many.parity.frames == 2
    if precision == "fp32":
        assert many.parity.tolerance is not None and many.parity.max_abs_map <= many.parity.tolerance
    else:
        assert many.gate is not None and one.gate is not None
        assert many.gate.map_cosine == pytest.approx(one.gate.map_cosine, abs=1e-3)
        assert calibrated_from(many.gate) == calibrated_from(one.gate), "as many images"


def check_verdicts(bundles: Bundles, precision: Precision, pictures: list[NDArray[np.uint8]]) -> None:
    """In whichever place of the batch a frame is, its answer is the one it gets alone."""
    with (
        Inspector.open(bundles[1].path, precision=precision) as single,
        Inspector.open(bundles[BATCH].path, precision=precision) as inspector,
    ):
        expected = [single.inspect(picture) for picture in pictures]
        frames = [Frame(image_bgr_u8=image, index=i, captured_at_s=0.0, source="x") for i, image in enumerate(pictures)]
        for order in ([0, 1, 2], [2, 0, 1]):
            inspector.start([inspector.prepare(frames[i]) for i in order])
            for i, inspection in zip(order, inspector.finish(), strict=True):
                assert inspection.verdict.score == pytest.approx(expected[i].score, rel=1e-3)
                assert np.allclose(inspection.verdict.anomaly_map, expected[i].anomaly_map, rtol=1e-2, atol=1e-2)
    assert len({round(verdict.score, 3) for verdict in expected}) == BATCH, "frames that differ"


def test_the_contract_says_how_many(bundles: Bundles) -> None:
    graph = bundles[BATCH].contract.graph
    assert (graph.frame.shape, graph.score.shape) == ((BATCH, 64, 64, 3), (BATCH,))
    assert bundles[1].contract.graph.batch == 1


def test_a_batch_changes_no_answer(bundles: Bundles, draw_washer: Draw) -> None:
    check_figures(bundles, "fp32")
    check_verdicts(bundles, "fp32", [draw_washer(seed, is_scratched=seed % 2 == 1) for seed in range(BATCH)])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nor_does_it_in_other_precisions(
    tiny_run: Path, tmp_path: Path, draw_washer: Draw, precision: Precision
) -> None:
    bundles = exported(tiny_run, tmp_path, precision)
    check_figures(bundles, precision)
    check_verdicts(bundles, precision, [draw_washer(seed, is_scratched=seed % 2 == 1) for seed in range(BATCH)])


def test_ranges_are_those_of_single_frames(bundles: Bundles) -> None:
    """Also of tensors that hold the frames elsewhere than in their first dimension."""
    frames_u8 = bundles[1].calibration_frames()
    one, many = (onnx.load(bundles[batch].graph_path("fp32")) for batch in (1, BATCH))
    tensors = [list(GraphView(model).nodes) for model in (one, many)]
    observed = [observe(model, names, frames_u8) for model, names in zip((one, many), tensors, strict=True)]
    by_size = [sorted(each.limits("percentile-99.9").values()) for each in observed]
    assert len(by_size[0]) == len(by_size[1]) > 50 and by_size[1] == pytest.approx(by_size[0], rel=0.02)
    assert observed[1].images == len(frames_u8)


def test_it_is_evaluated_and_run_like_any_other(
    bundles: Bundles, parts_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (one, one_judged), (many, many_judged) = (
        evaluate(open_subject(bundles[batch].path, "fp32"), parts_folder) for batch in (1, BATCH)
    )
    assert [part.path for part in many_judged.parts] == [part.path for part in one_judged.parts]
    # Kernels for three frames may round elsewhere than those for one, which moves a figure over pixels a little.
    np.testing.assert_allclose(many_judged.scores, one_judged.scores, rtol=1e-3)
    assert asdict(many.as_metrics()) == pytest.approx(asdict(one.as_metrics()), abs=1e-4)
    capfd.readouterr()
    # No held-out part: one of them has the score that is the threshold, by whose last bit it is good.
    source = str(parts_folder / "test")
    assert main(["run", str(bundles[1].path), "--source", source]) == 0
    single = [line.split()[:4] for line in capfd.readouterr().out.splitlines()]
    assert main(["run", str(bundles[BATCH].path), "--source", source]) == 0
    assert [line.split()[:3] for line in capfd.readouterr().out.splitlines()[:-2]] == [row[:3] for row in single[:-2]]


@pytest.mark.parametrize("batch", ["0", "-1", "65"])
def test_batches_that_are_none(tiny_run: Path, tmp_path: Path, refused: Refused, batch: str) -> None:
    message = refused("export", tiny_run, "--out", tmp_path / "bundle", f"--batch={batch}")
    assert message == f"rdedge: error: --batch {batch}; give 1 to 64 frames\n"
    assert not (tmp_path / "bundle").exists()


def test_deepstream_takes_single_pictures_and_says_so_before_the_export(
    tiny_run: Path, bundles: Bundles, tmp_path: Path, refused: Refused
) -> None:
    command = ["export", tiny_run, "--out", tmp_path / "bundle", "--batch", "2", "--deepstream", tmp_path / "ds"]
    assert "--deepstream with --batch: its configuration is for single pictures" in refused(*command)
    assert list(tmp_path.iterdir()) == []
    message = refused("export", bundles[BATCH].path, "--deepstream", tmp_path / "ds")
    assert "was exported for batches of 3; export it again for single pictures" in message
