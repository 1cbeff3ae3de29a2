"""`rdedge selftest` on the pretend GPU: the table, and what fails it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rdedge.backends.trt import TensorRtBackend
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge_export import selftest_engine


def test_a_device_that_works_passes(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt("10.3.0")
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))  # this machine is shared
    assert main(["selftest", str(engine_bundle), "--seconds", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines[:11]] == [
        ["pass", name]
        for name in (
            "GPU",
            "tensorrt",
            *(f"{p} {part}" for p in ("fp32", "fp16", "int8") for part in ("engine", "pace", "in flight")),
        )
    ]
    assert "built, within 0.00% of ONNX Runtime on 6 good parts" in lines[2]
    assert "ms, p99" in lines[3] and lines[3].endswith("CUDA graph replayed")
    assert lines[4].endswith("a second, within 0.00% of one at a time") and lines[-1] == "11 passed, 0 failed"
    assert lines[11] == "none  DLA                   no engine of the bundle uses it; --dla 0 builds one"
    assert lines[12].startswith("none  heat                  ") or Path("/etc/nv_tegra_release").exists()


def test_dla_where_it_is_asked_for_and_where_an_engine_uses_it(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt("10.3.0").fake.dla_cores = 2
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))
    for arguments in (["--dla", "1"], []):
        assert main(["selftest", str(engine_bundle), "--seconds", "0.02", *arguments]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if " DLA " in line]
        parts = [f"fp16 DLA 1 {part}" for part in ("engine", "pace", "in flight")]
        assert [row.split("  ")[1].strip() for row in rows] == parts
        assert rows[0].endswith("of ONNX Runtime on 6 good parts, 1 of 7 layers on DLA")
    assert selftest_engine.dla_engines_of(open_bundle(engine_bundle)) == [("fp16", 1)]


def test_dla_where_there_is_none_fails(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt("10.3.0").fake.dla_cores = 0
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))
    assert main(["selftest", str(engine_bundle), "--seconds", "0.02", "--dla", "0"]) == 2
    assert capsys.readouterr().out.count("no DLA core 0: this TensorRT offers 0 on this device") == 1


def test_an_engine_that_answers_otherwise_fails(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_tensorrt("10.3.0").fake.map_offset = 1.0
    assert main(["selftest", str(engine_bundle), "--seconds", "0.01"]) == 2
    out = capsys.readouterr().out
    assert out.count("FAIL") == 3 and "differs from ONNX Runtime" in out and "pace" not in out
    assert out.endswith("2 passed, 3 failed\n")


def test_an_engine_that_cannot_be_recorded_passes_and_says_so(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt("10.3.0").fake.fails_in_capture = True
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))
    assert main(["selftest", str(engine_bundle), "--seconds", "0.05"]) == 0
    assert capsys.readouterr().out.count("; no CUDA graph (inference failed: CUDA error in kernel)") == 3


def test_frames_that_disturb_each_other_fail(
    install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt("10.3.0")
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))
    real = TensorRtBackend.start
    monkeypatch.setattr(TensorRtBackend, "start", lambda self, frame: real(self, frame // (1 + len(self._under_way))))
    assert main(["selftest", str(engine_bundle), "--seconds", "0.05"]) == 2
    out = capsys.readouterr().out
    assert out.count("of one at a time; run lines with --in-flight 1 here") == 3 and out.endswith(
        "8 passed, 3 failed\n"
    )


def test_a_device_that_slows_down_fails(engine_bundle: Path, install_tensorrt: Any, monkeypatch: Any) -> None:
    install_tensorrt("10.3.0")
    slower = [1.0] * 50 + [2.0] * 50
    monkeypatch.setattr(selftest_engine, "_times_ms", lambda *_: slower)
    results = list(selftest_engine.examine_engines(open_bundle(engine_bundle), "tensorrt", 1.0, None))
    paces = [result for result in results if result.name.endswith("pace")]
    assert not any(result.has_passed for result in paces)
    assert "2.0 times slower at the end; cool the device, or fix its clocks" in paces[0].text


def test_without_the_library_the_table_ends(
    engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["selftest", str(engine_bundle)]) == 2
    out = capsys.readouterr().out
    assert "pass  GPU" in out and "FAIL  tensorrt" in out and out.endswith("1 passed, 1 failed\n")


def test_a_load_of_no_time_is_refused(engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(engine_bundle), "--seconds", "0"]) == 2
    assert "--seconds 0.0; give a time above zero" in capsys.readouterr().err
