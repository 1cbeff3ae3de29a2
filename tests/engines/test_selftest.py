"""`rdedge selftest` without a GPU: ONNX Runtime as the line's engine, heat, and the report to send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.backends.base import Prediction
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.board.thermal import Heat
from rdedge.cli import main
from rdedge.events import Event
from rdedge_export import selftest_engine, selftest_verb
from rdedge_export.selftest_verb import heat_result

COLD = Heat(temperatures_c={"tj": 41.0}, alerts={"gpu": False}, over_currents={"instantaneous over-current": 5})
WARM = Heat(temperatures_c={"tj": 68.4}, alerts={"gpu": False}, over_currents={"instantaneous over-current": 8})
THROTTLED = Event(kind="throttling", severity="warning", text="the board is too hot", camera="")
OVER_CURRENT = Event(kind="over-current", severity="warning", text="moments", camera="")


@pytest.fixture(autouse=True)
def any_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))  # this machine is shared


def selftest(bundle: Path, *arguments: object) -> int:
    return main(["selftest", str(bundle), "--backend", "onnxruntime", "--seconds", "0.05", *map(str, arguments)])


def test_every_precision_answers_and_keeps_its_pace(engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest(engine_bundle) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{precision} {part}" for precision in ("fp32", "fp16", "int8") for part in ("answers", "pace")]
    assert [line.split("  ")[:2] for line in lines[:6]] == [["pass", name] for name in names]
    assert "0 of 6 good parts above the threshold 0.5, scores up to 0." in lines[0]
    assert " frames: p50 " in lines[1] and "CUDA" not in lines[1]
    assert lines[-1].endswith(" passed, 0 failed") and int(lines[-1].split()[0]) >= 6


def altered(change: Callable[[NDArray[np.float32], int], NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score goes through ``change(score, number of the call)``."""
    infer, calls = OnnxRuntimeBackend.infer, iter(range(1_000_000))

    def changed(self: OnnxRuntimeBackend, frame_u8: NDArray[np.uint8]) -> Prediction:
        prediction = infer(self, frame_u8)
        return Prediction(anomaly_map=prediction.anomaly_map, score=change(prediction.score, next(calls)))

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda score, _: score + 1, "6 of 6 good parts above the threshold"),
        (lambda score, call: score + (call % 7 < 2), "2 of 6 good parts above the threshold"),
        (lambda score, _: score * np.float32("nan"), "scores up to nan"),
        (lambda score, call: score + np.float32(0.01 * (call % 7 == 6)), "one frame scored 0."),
    ],
    ids=["all", "too-many", "nan", "not-the-same"],
)
def test_wrong_answers_fail_and_are_not_timed(
    change: Callable[..., NDArray[np.float32]],
    says: str,
    engine_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    altered(change, monkeypatch)
    assert selftest(engine_bundle) == 2
    out = capsys.readouterr().out
    assert out.count("FAIL") == 3 and says in out and "pace" not in out and out.endswith("passed, 3 failed\n")


def test_the_report_holds_what_a_reader_needs(engine_bundle: Path, tmp_path: Path) -> None:
    assert selftest(engine_bundle, "--json", tmp_path / "report.json", "--source", tmp_path / "nothing") == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is False, "also what failed is written"
    assert [result["name"] for result in report["results"] if result["has_passed"] is False] == ["camera"]
    assert report["options"] == {"backend": "onnxruntime", "seconds": 0.05, "dla": None}
    assert report["bundle"]["precisions"] == ["fp32", "fp16", "int8"]
    assert report["versions"].keys() >= {"python", "rdedge", "numpy", "onnxruntime"}
    assert {"onnxruntime", "power mode", "heat"} <= {finding["name"] for finding in report["findings"]}


def test_a_report_that_cannot_be_written_says_so(engine_bundle: Path, refused: Callable[..., str]) -> None:
    err = refused_with_table(engine_bundle, refused)
    assert "report.json: No such file or directory" in err


def refused_with_table(bundle: Path, refused: Callable[..., str]) -> str:
    options = ["--backend", "onnxruntime", "--seconds", "0.02", "--json", bundle / "no" / "report.json"]
    return refused("selftest", bundle, *options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--dla", "0"], "--dla with --backend onnxruntime"), (["--seconds", "-1"], "--seconds -1.0; give a time")],
)
def test_what_makes_no_sense_is_refused(
    engine_bundle: Path, refused: Callable[..., str], arguments: list[str], says: str
) -> None:
    assert says in refused("selftest", engine_bundle, "--backend", "onnxruntime", *arguments)


def test_heat_before_and_after() -> None:
    calm = heat_result(COLD, WARM, [OVER_CURRENT])
    assert calm.has_passed, "short peaks of current are usual"
    assert calm.text == ("tj 41 °C before, tj 68 °C after; not slowed down for heat; 3 x instantaneous over-current")
    assert heat_result(COLD, COLD, []).text.endswith("; no over-current")
    hot = heat_result(COLD, WARM, [OVER_CURRENT, THROTTLED])
    assert hot.has_passed is False and "the board is too hot; cool it" in hot.text
    desktop = Heat(temperatures_c={"x86_pkg_temp": 50.0}, alerts={}, over_currents={})
    assert heat_result(desktop, desktop, []).has_passed is None


def test_a_board_that_throttles_under_load_fails(
    engine_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "sys/class/thermal/cooling_device0"
    device.mkdir(parents=True)
    (device / "type").write_text("gpu-throttle-alert\n")
    (device / "cur_state").write_text("1\n")
    monkeypatch.setattr(selftest_verb, "_ROOT", tmp_path)
    assert selftest(engine_bundle) == 2
    assert "FAIL  heat                  the board is too hot and slows down: gpu" in capsys.readouterr().out
