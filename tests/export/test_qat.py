"""``rdedge export --qat``: tuned weights are written only where the gate measures them better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.errors import ExportError
from rdedge.fidelity import Gate, QuantisationSpec
from rdedge_export import qat
from rdedge_export.calibration import read_calibration
from rdedge_export.gate import Budget, GateFrames, Gatekeeper
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.precisions import Calibration, Lowered, Lowering
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import fit_head
from rdedge_train.run_folder import FinishedRun, open_run

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> FinishedRun:
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def calibration(run: FinishedRun) -> Calibration:
    return read_calibration(run, None)


@pytest.fixture(scope="module")
def keeper(run: FinishedRun) -> Gatekeeper:
    frames_u8 = run.held_out_frames()
    frames = GateFrames(good_u8=frames_u8, labelled_u8=frames_u8[:0], is_defective=np.zeros(0, np.bool_))
    fp32 = onnx.load_from_string(onnx_graph(run.detector, graph_spec((64, 64))))
    return Gatekeeper(fp32, frames, 0.01, Budget(map_cosine=0.5, verdict_flips=1.0))


@pytest.fixture(autouse=True)
def two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to change every weight."""
    monkeypatch.setattr(qat, "EPOCHS", 2)


def tuned(run: FinishedRun, calibration: Calibration) -> dict[str, torch.Tensor]:
    return qat.fine_tuned(run, calibration, calibration.frames_u8, with_transposed=False).state_dict()


def lowered(cosine: float, *, flips: float = 0.0, auroc: float | None = None, back: int = 0) -> Lowered:
    """A graph with these figures."""
    gate = Gate(
        good_frames=9,
        labelled_frames=0 if auroc is None else 5,
        map_cosine=cosine,
        p999_abs_map=0.1,
        score_rank_correlation=1.0,
        verdict_flips=flips,
        auroc_change=auroc,
        max_auroc_drop=0.005,
        max_verdict_flips=0.01,
        min_map_cosine=0.5,
        layers_kept_back=tuple(f"layer{i}" for i in range(back)),
        quantisation=QuantisationSpec(
            method="minmax", images=9, images_sha256="a" * 64, source="here", fine_tuning=None
        ),
    )
    return Lowered(
        precision="int8",
        model=onnx.ModelProto(),
        gate=gate,
        scores=np.zeros(9, np.float32),
        good_map_cosine=cosine,
    )


@pytest.mark.parametrize(
    ("tuned", "plain", "is_better"),
    [
        (lowered(0.992), lowered(0.990), True),
        (lowered(0.9905), lowered(0.990), False),  # less than a tenth of what lacks: chance
        (lowered(0.98), lowered(0.99), False),
        (lowered(0.999, flips=0.01), lowered(0.99), False),
        (lowered(0.999, auroc=-0.002), lowered(0.99, auroc=-0.001), False),
        (lowered(0.999, auroc=-0.001), lowered(0.99, auroc=-0.001), True),
        (lowered(0.98), lowered(0.99, back=2), True),
        (lowered(0.999, back=2), lowered(0.99, back=1), False),
    ],
)
def test_the_gate_decides(tuned: Lowered, plain: Lowered, is_better: bool) -> None:
    assert qat.is_better(tuned, plain) is is_better


def test_tuning_changes_bottleneck_and_student_alone_and_fits_the_head_anew(
    run: FinishedRun, calibration: Calibration
) -> None:
    detector = qat.fine_tuned(run, calibration, calibration.frames_u8, with_transposed=False)
    before = qat.folded(run.detector, torch.zeros((1, 64, 64, 3), dtype=torch.uint8)).state_dict()
    changed = {name for name, values in detector.state_dict().items() if not torch.equal(values, before[name])}
    assert {name.split(".")[0] for name in changed} == {"restorer", "head"}
    assert {name for name in changed if name.startswith("restorer.")} == {
        name for name, _ in detector.named_parameters() if name.startswith("restorer.")
    }
    frames_u8 = calibration.frames_u8
    cpu = torch.device("cpu")
    features = TeacherFeatures(quick_teacher(detector.teacher, (64, 64), cpu), frames_u8, cpu, budget_bytes=2**30)
    head = detector.head
    assert head is not None
    fitted = {name: values.clone() for name, values in head.state_dict().items()}
    fit_head(detector, features, run.record.config.tolerance, run.record.config.seed)
    assert all(torch.equal(values, fitted[name]) for name, values in head.state_dict().items())


def test_tuning_brings_the_student_nearer_to_what_it_was(
    run: FinishedRun, calibration: Calibration, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "EPOCHS", 8)
    tuned(run, calibration)
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().err.splitlines()]
    assert len(losses) == 8 and losses[-1] < 0.9 * losses[0]


def test_the_same_seed_gives_the_same_bits(run: FinishedRun, calibration: Calibration) -> None:
    first, second = tuned(run, calibration), tuned(run, calibration)
    assert all(torch.equal(values, second[name]) for name, values in first.items())


def test_a_loss_that_is_not_finite_ends_it(
    run: FinishedRun, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "_LEARNING_RATE", float("inf"))
    with pytest.raises(ExportError, match=r"fine-tuning: the loss became nan; export without --qat"):
        tuned(run, calibration)


def int8(run: FinishedRun, keeper: Gatekeeper, calibration: Calibration) -> Lowered:
    fp32 = onnx.load_from_string(onnx_graph(run.detector, graph_spec((64, 64))))
    lowering = Lowering(fp32, keeper, ranks_layers=False)
    return qat.int8_with_qat(run, keeper, lowering, calibration, calibration.frames_u8, with_transposed=False)


def test_what_loses_is_not_written_and_both_figures_are_told(
    run: FinishedRun, keeper: Gatekeeper, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "_LEARNING_RATE", 0.5)  # a student that is tuned to pieces
    kept = int8(run, keeper, calibration)
    quantisation = kept.gate.quantisation
    assert quantisation is not None and quantisation.fine_tuning is not None
    told = quantisation.fine_tuning
    assert not told.is_kept and told.plain_map_cosine == kept.good_map_cosine
    assert told.tuned_map_cosine is None or told.tuned_map_cosine < kept.good_map_cosine
    assert kept.notes[-1].startswith("fine-tuning with fake quantisation lost and was not kept: ")
    assert f"{kept.good_map_cosine:.5f}" in kept.notes[-1]


def test_what_wins_is_written(
    run: FinishedRun, keeper: Gatekeeper, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "is_better", lambda tuned, plain: True)
    plain = Lowering(
        onnx.load_from_string(onnx_graph(run.detector, graph_spec((64, 64)))), keeper, ranks_layers=False
    ).int8(calibration)
    kept = int8(run, keeper, calibration)
    assert kept.gate.quantisation is not None and kept.gate.quantisation.fine_tuning is not None
    told = kept.gate.quantisation.fine_tuning
    assert told.is_kept and told.tuned_map_cosine == kept.good_map_cosine
    assert told.plain_map_cosine == plain.good_map_cosine != kept.good_map_cosine
    assert kept.model != plain.model
    assert "fine-tuning with fake quantisation was kept: " in kept.notes[-1]


def test_where_calibration_alone_is_refused_tuning_may_save_it_and_both_refused_is_an_error(
    run: FinishedRun, keeper: Gatekeeper, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [ExportError("too far", remedy="remedy"), lowered(0.99)]
    monkeypatch.setattr(qat, "_attempt", lambda *_: refusals.pop(0))
    kept = int8(run, keeper, calibration)
    assert kept.gate.quantisation is not None and kept.gate.quantisation.fine_tuning is not None
    assert kept.gate.quantisation.fine_tuning.is_kept
    assert kept.notes[-1].endswith("against refused (too far) by calibration alone")
    refusals.extend([ExportError("too far", remedy="remedy"), ExportError("further", remedy="other")])
    with pytest.raises(ExportError, match="too far; fine-tuned: further; remedy"):
        int8(run, keeper, calibration)


def test_the_command_writes_whichever_won_and_says_so(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    options = ["--precision", "int8", "--qat", "--budget", "cosine=0.5,flips=1"]
    assert main(["export", str(tiny_run), "--out", str(out), *options]) == 0
    gate = open_bundle(out).contract.precisions["int8"].gate
    assert gate is not None and gate.quantisation is not None
    told = gate.quantisation.fine_tuning
    assert told is not None and told.epochs == 2
    assert told.tuned_map_cosine is not None and told.plain_map_cosine is not None
    assert told.tuned_auroc_change is None and told.plain_auroc_change is None
    outcome = "; fine-tuned" if told.is_kept else "; fine-tuning lost and was not kept"
    printed = capsys.readouterr()
    assert next(line for line in printed.out.splitlines() if line.startswith("int8: ")).endswith(outcome)
    told = [line[:13] for line in printed.err.splitlines() if not line.startswith("rdedge: warning: ")]
    assert told == ["qat epoch 1/2", "qat epoch 2/2"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("fine-tuning with fake quantisation ") == 1 and "<dt>Fine-tuned</dt>" in page


def test_killed_while_tuning_leaves_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qat, "_step", interrupt)
    options = ["--precision", "int8", "--qat", "--budget", "cosine=0.5,flips=1"]
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "bundle"), *options]) != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--qat", "--int8-transposed"])
def test_options_of_int8_without_int8_are_refused(
    tiny_run: Path, tmp_path: Path, refused: Refused, option: str
) -> None:
    error = refused("export", tiny_run, "--out", tmp_path / "bundle", "--precision", "fp16", option)
    assert error == "rdedge: error: --int8-transposed or --qat without int8; add int8 to --precision\n"


def test_the_contract_holds_the_outcome() -> None:
    spec = lowered(0.99).gate.quantisation
    assert spec is not None and msgspec.json.decode(msgspec.json.encode(spec), type=QuantisationSpec) == spec
