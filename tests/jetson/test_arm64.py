"""The proof on arm64: what counts as equal, what is copied, which wheels a board takes. The rest needs an emulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import arm64
from arm64 import Run, compare, pick, platforms, read_records, render
from rdedge.errors import UsageError


def record(score: float, *, threshold: float = 2.0, box: tuple[int, int, int, int] = (1, 2, 3, 4)) -> dict[str, Any]:
    is_anomalous = score > threshold
    return {
        "verdict": "anomalous" if is_anomalous else "good",
        "score": score,
        "threshold": threshold,
        "regions": [{"box_xywh": list(box)}] if is_anomalous else [],
    }


def run(**scores: dict[str, Any]) -> Run:
    return Run(versions="x", records=scores, seconds=1.0)


def test_equal_but_for_rounding() -> None:
    compared = compare(run(a=record(1.0), b=record(3.0)), run(a=record(1.0 + 1e-6), b=record(3.0 - 2e-5)))
    assert compared.is_equal and (compared.pictures, compared.anomalous) == (2, 1)
    assert compared.score_share == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("there", "flips"),
    [(record(2.0 - 1e-9), ["b"]), (record(3.0 + 3e-4), []), (record(float("nan")), ["b"])],
    ids=["flip", "score", "nan"],
)
def test_another_verdict_or_score_is_not_equal(there: dict[str, Any], flips: list[str]) -> None:
    here = record(2.0 + 1e-9) if flips else record(3.0)
    compared = compare(run(b=here), run(b=there))
    assert compared.flips == flips and not compared.is_equal


def test_a_score_that_is_no_number_is_not_equal() -> None:
    here, there = run(a=record(1.0), b=record(1.0)), run(a=record(1.0), b=record(float("nan")))
    assert compare(here, there).flips == [] and not compare(here, there).is_equal


def test_other_boxes_are_told() -> None:
    here, there = run(b=record(3.0)), run(b=record(3.0, box=(1, 2, 3, 5)))
    assert compare(here, there).other_regions == ["b"]
    assert "| fp32 | 1 | 1 | none | b | 0.0e+00 | 1.0, 1.0 |" in render({}, {"fp32": (here, there)}).splitlines()


def test_nothing_is_not_equal_and_other_pictures_are_refused() -> None:
    assert not compare(run(), run()).is_equal
    with pytest.raises(UsageError, match=r"pictures judged on one side only: \['b'\]"):
        compare(run(a=record(1.0), b=record(1.0)), run(a=record(1.0)))


def test_a_board_takes_wheels_up_to_its_glibc() -> None:
    tags = platforms(35)
    assert tags[0] == "manylinux_2_35_aarch64" and tags[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert "manylinux_2_28_aarch64" in tags and len(tags) == 20
    assert set(arm64.TARGETS) == {"3.10", "3.11", "3.12"} and arm64.SUITE_PYTHON in arm64.TARGETS


def test_some_pictures_of_each_kind(tmp_path: Path) -> None:
    for kind in ("good", "dent"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "test" / kind / f"{i}.png").write_bytes(b"picture")
    parts = pick(tmp_path / "test", 2, tmp_path / "parts")
    assert sorted(str(p.relative_to(parts)) for p in parts.rglob("*.png")) == [
        "dent/0.png",
        "dent/1.png",
        "good/0.png",
        "good/1.png",
    ]
    with pytest.raises(UsageError, match="has no folders of pictures"):
        pick(tmp_path / "test" / "good", 2, tmp_path / "none")


def test_records_have_the_name_of_kind_and_picture(tmp_path: Path) -> None:
    lines = [json.dumps({"source": name, "index": 1} | record(1.0)) for name in ("/parts/good/0.png", "p/dent/0.png")]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(lines))
    assert read_records(tmp_path) == {"good/0.png": record(1.0), "dent/0.png": record(1.0)}


def test_what_is_missing_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    monkeypatch.setattr(sys, "argv", ["arm64.py", "bundle", "parts", "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match="qemu-aarch64-static, debootstrap not found; apt-get install"):
        arm64.main()
    assert not (tmp_path / "work").exists()
