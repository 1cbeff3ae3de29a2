"""Several types of parts in one project: a run each, one table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.cli import main
from rdedge_train.evaluate import evaluate
from rdedge_train.subject import open_subject

Refused = Callable[..., str]
WriteParts = Callable[..., Path]
TRAIN = ["--image-size", "64", "--epochs", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, write_parts: WriteParts) -> tuple[Path, Path]:
    """Two types of parts and their runs, as `rdedge train --each` makes them."""
    root = tmp_path_factory.mktemp("project")
    write_parts(root / "data/bolt", good=6, test_good=2, scratched=2)
    write_parts(root / "data/nut", good=6, test_good=3, scratched=1)
    (root / "data/notes").mkdir()
    assert main(["train", str(root / "data"), "--each", "--out", str(root / "runs"), *TRAIN]) == 0
    return root / "data", root / "runs"


def test_each_type_has_a_run_of_its_own(project: tuple[Path, Path]) -> None:
    data, runs = project
    assert sorted(os.listdir(runs)) == ["bolt", "nut"]
    for name in ("bolt", "nut"):
        record = json.loads((runs / name / "run.json").read_text())
        assert record["data"] == str(data / name)
        assert (runs / name / "weights.safetensors").exists()


def test_the_same_command_resumes(project: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = project
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("weights.safetensors")}
    assert main(["train", str(data), "--each", "--out", str(runs), *TRAIN]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("weights.safetensors")} == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("run in ")[2] for line in lines[:2]] == [str(runs / "bolt"), str(runs / "nut")]
    assert lines[2] == f"next: rdedge evaluate {runs} {data}"


def test_one_table_of_all(project: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = project
    figures, report = tmp_path / "figures.json", tmp_path / "report.html"
    assert main(["evaluate", str(runs), str(data), "--json", str(figures), "--report", str(report)]) == 0
    result = json.loads(figures.read_bytes())
    alone = {name: evaluate(open_subject(runs / name, "fp32"), data / name)[0] for name in ("bolt", "nut")}
    for name, evaluation in alone.items():
        assert result["types"][name]["overall"]["image_auroc"] == evaluation.overall.image_auroc
        assert result["types"][name]["threshold"]["value"] == evaluation.threshold.value
    for figure in ("image_auroc", "pixel_auroc", "au_pro", "miss_rate"):
        values = [getattr(evaluation.overall, figure) for evaluation in alone.values()]
        assert result["mean"][figure] == pytest.approx(sum(values) / 2)
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[1:4]] == [["bolt", "2", "2"], ["nut", "3", "1"], ["mean", "5", "3"]]
    assert table[3].split()[3] == f"{result['mean']['image_auroc']:.4f}"
    page = report.read_text()
    assert "<td>bolt</td><td>2</td><td>2</td>" in page and "<td>mean</td>" in page


def test_a_mean_needs_the_figure_of_every_type(project: tuple[Path, Path], tmp_path: Path) -> None:
    data, runs = project
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(copy / "nut/ground_truth")
    figures = tmp_path / "figures.json"
    assert main(["evaluate", str(runs), str(copy), "--json", str(figures)]) == 0
    result = json.loads(figures.read_bytes())
    assert result["mean"]["au_pro"] is None
    assert result["mean"]["image_auroc"] is not None


def test_what_does_not_fit_is_told_before_the_work(
    project: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    data, runs = project
    message = refused("evaluate", runs, data / "bolt")
    assert f"{data}/bolt: has no folder bolt for {runs}/bolt; name the folder that the runs were trained on" in message
    assert "--robustness is of one run or bundle" in refused("evaluate", runs, data, "--robustness")
    assert "holds several types of parts (bolt, nut)" in refused("train", data, "--out", tmp_path / "run")
    message = refused("train", data / "bolt", "--each", "--out", tmp_path / "run")
    assert f"{data}/bolt: holds no folder of a type of parts" in message
    assert "no such folder" in refused("train", tmp_path / "gone", "--each", "--out", tmp_path / "run")
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(copy / "nut/train/good")
    (copy / "nut/train/good").mkdir()
    assert "nut: holds no good images" in refused("train", copy, "--each", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
