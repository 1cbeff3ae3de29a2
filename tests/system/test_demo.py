"""The demo as a newcomer runs it, and what it promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TIMEOUT_S = 1500


def run_demo(out: Path) -> str:
    command = [sys.executable, "-m", "rdedge", "demo", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "rdedge-demo"
    return out, run_demo(out)


def test_it_finds_the_defects(demo: tuple[Path, str]) -> None:
    evaluation = json.loads((demo[0] / "report.json").read_text(encoding="utf-8"))
    assert (evaluation["good_parts"], evaluation["defective_parts"]) == (60, 80)
    assert evaluation["overall"]["image_auroc"] >= 0.98
    assert evaluation["overall"]["au_pro"] >= 0.90
    assert evaluation["false_reject_rate"] <= 0.05


def test_every_part_of_the_video_gets_a_verdict(demo: tuple[Path, str]) -> None:
    out, printed = demo
    lines = (out / "line" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["index"] for record in records] == list(range(60))
    rejected = {record["index"] for record in records if record["verdict"] == "anomalous"}
    pictures = (out / "line" / "rejects").rglob("*.jpg")
    assert {int(picture.name.split("_")[0]) for picture in pictures} == rejected
    truth = json.loads((out / "parts" / "line.truth.json").read_text(encoding="utf-8"))
    defective = {entry["frame"] for entry in truth if entry["defect"]}
    assert len(defective) == 15
    assert len(rejected & defective) >= 11
    assert len(rejected - defective) <= 3
    assert re.search(r"^good +45 ", printed, flags=re.MULTILINE)


def test_it_leaves_a_report_and_a_small_bundle(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert f"report, with pictures: {out / 'report.html'}" in printed
    assert (out / "report.html").stat().st_size > 100_000
    bundle_bytes = sum(p.stat().st_size for p in (out / "bundle").rglob("*") if p.is_file())
    assert bundle_bytes <= 12e6


def test_a_second_demo_trains_nothing_anew(demo: tuple[Path, str]) -> None:
    out, _ = demo
    weights = (out / "run" / "weights.safetensors").stat().st_mtime_ns
    printed = run_demo(out)
    assert "$ rdedge export" not in printed
    assert (out / "run" / "weights.safetensors").stat().st_mtime_ns == weights
    assert len((out / "line" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()) == 120
