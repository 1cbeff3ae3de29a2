"""``rdedge export``: what it says, and the rates it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.threshold import shortage
from rdedge_train.evaluate import evaluate
from rdedge_train.evaluate_verb import format_table
from rdedge_train.subject import open_subject

Refused = Callable[..., str]


def test_says_how_faithful_and_how_good_the_graph_is(
    tiny_run: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    command = ["export", str(tiny_run), "--out", str(out), "--labelled", str(parts_folder)]
    assert main([*command, "--false-reject-rate", "0.2"]) == 0
    printed = capfd.readouterr()
    contract = open_bundle(out).contract
    threshold = contract.precisions["fp32"].image_threshold
    assert threshold.target_rate == 0.2
    evaluation, _ = evaluate(open_subject(out, "fp32"), parts_folder)
    assert contract.precisions["fp32"].metrics == evaluation.as_metrics()
    assert {"model.onnx", "report.html"} == {name for name in contract.files if not name.startswith("calibration/")}
    assert "Inspection report: bundle" in (out / "report.html").read_text(encoding="utf-8")
    table, bundle_line, next_line = printed.out.rstrip().rsplit("\n", 2)
    assert table == format_table(evaluation)
    faithful = r"\d\.\d MB; map within \d\.\de-\d\d of PyTorch on 2 frames"
    assert re.fullmatch(rf"bundle {out}: {faithful}; threshold {threshold.value:.4f}", bundle_line)
    assert next_line == f"next: rdedge run {out} --source FOLDER_OR_VIDEO"
    assert printed.err == f"rdedge: warning: {shortage(threshold)}\n"


def test_the_rule_of_the_threshold_can_be_chosen(
    tiny_run: Path, tmp_path: Path, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "bundle"), "--threshold-rule", "quantile"]) == 0
    assert open_bundle(tmp_path / "bundle").contract.precisions["fp32"].image_threshold.rule == "quantile"
    message = refused("export", tiny_run, "--out", tmp_path / "other", "--threshold-rule", "pot")
    assert "peaks over threshold need at least 25 held-out good parts, got 2" in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "1.5", "nan", "inf"])
def test_rates_that_are_none(tiny_run: Path, tmp_path: Path, refused: Refused, rate: str) -> None:
    message = refused("export", tiny_run, "--out", tmp_path / "bundle", f"--false-reject-rate={rate}")
    assert message == f"rdedge: error: --false-reject-rate {float(rate)}; give a share between 0 and 1\n"
    assert not (tmp_path / "bundle").exists()
