"""`rdedge doctor` on pretended machines: what it finds, what it tells to do, and its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rdedge import doctor_verb
from rdedge.cli import main
from rdedge.doctor_verb import Finding, examine, usable_backends
from rdedge.errors import BackendError, MissingExtraError

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
NVPMODEL = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
BUILD = "  Video I/O:\n    GStreamer:                   {}\n"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with pycuda and TensorRT, and no TensorRT-RTX."""
    device = SimpleNamespace(name="Orin", compute_capability="8.7", shares_memory=True, error=RuntimeError)
    monkeypatch.setattr(doctor_verb, "CudaDevice", lambda: device)
    monkeypatch.setattr(doctor_verb, "_replay_a_copy", lambda device: None)  # for real: tests/engines/standin
    monkeypatch.setattr(doctor_verb, "load_pycuda", lambda: SimpleNamespace(get_driver_version=lambda: 12060))
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(VERSION_TEXT="2024.1.2"))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise MissingExtraError("pycuda cannot be loaded (no libcuda)", remedy="do this; `rdedge doctor` says what is")

    for name in ("CudaDevice", "load_pycuda"):
        monkeypatch.setattr(doctor_verb, name, fail)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def jetson(tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of an Orin Nano with JetPack 6.2 at full speed."""
    write(tmp_path, "etc/nv_tegra_release", RELEASE)
    write(tmp_path, "etc/nvpmodel.conf", NVPMODEL)
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    write(tmp_path, f"{folder}/scaling_min_freq", "1728000\n")
    write(tmp_path, f"{folder}/scaling_max_freq", "1728000\n")
    say_mode(tmp_path, "MAXN_SUPER", monkeypatch)
    monkeypatch.setattr("cv2.getBuildInformation", lambda: BUILD.format("YES (1.20.3)"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5e10))
    return tmp_path


def say_mode(root: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = root / "bin" / "nvpmodel"
    write(root, "bin/nvpmodel", f"#!/bin/sh\necho 'NV Power Mode: {mode}'\necho 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")


def by_name(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(root)}


def test_a_jetson_that_is_ready(jetson: Path) -> None:
    findings = by_name(jetson)
    assert findings["L4T"].found == "36.4.3"
    assert findings["driver"].found == "part of L4T"
    assert findings["GPU"].found == "Orin, SM 8.7, memory shared with the CPU"
    assert findings["pycuda"].found == "2024.1.2, CUDA 12.6 in the driver"
    assert findings["tensorrt"].found == "10.3.0"
    assert (findings["power mode"].status, findings["power mode"].found) == ("ok", "MAXN_SUPER")
    assert findings["clocks"].found == "cpu0 at 1728 MHz, fixed"
    assert {name for name, finding in findings.items() if finding.status != "ok"} == {"tensorrt-rtx", "heat"}
    assert usable_backends(list(findings.values())) == ["tensorrt", "onnxruntime", "openvino"]


def test_a_jetson_that_is_slow_and_blind(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say_mode(jetson, "15W", monkeypatch)
    write(jetson, "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "115200\n")
    monkeypatch.setattr("cv2.getBuildInformation", lambda: BUILD.format("NO"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5e8))
    monkeypatch.setattr(doctor_verb, "_has_pygobject", lambda: False)
    findings = by_name(jetson)
    assert findings["power mode"].remedy == "sudo nvpmodel -m 2", "the number of MAXN_SUPER on this board"
    assert findings["clocks"].remedy == "sudo jetson_clocks"
    assert "pip install 'rdedge[gobject]'" in findings["OpenCV"].remedy
    assert findings["disk"].found.startswith("0.5 GB free at ")
    assert {name for name, finding in findings.items() if finding.status == "warning"} == {
        "power mode",
        "clocks",
        "OpenCV",
        "disk",
    }


def test_a_jetson_without_its_tools(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (jetson / "bin" / "nvpmodel").unlink()
    write(jetson, "etc/nv_tegra_release", "something new\n")
    findings = by_name(jetson)
    assert findings["power mode"].found == "nvpmodel does not say"
    assert findings["L4T"].found == "something new"


def test_a_desktop_without_a_gpu_runs_on_the_cpu(tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = by_name(tmp_path)
    assert findings["L4T"].status == findings["clocks"].status == findings["power mode"].status == "absent"
    assert findings["driver"].found == "no NVIDIA driver"
    assert (findings["GPU"].status, findings["GPU"].remedy) == ("missing", "do this")
    assert "pip install 'rdedge[rtx]'" in findings["tensorrt-rtx"].remedy
    assert usable_backends(list(findings.values())) == ["onnxruntime", "openvino"]


def test_without_openvino_nothing_has_to_be_mended(
    tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    findings = by_name(tmp_path)
    assert (findings["openvino"].status, findings["openvino"].remedy) == ("absent", "pip install 'rdedge[openvino]'")
    assert usable_backends(list(findings.values())) == ["onnxruntime"]


def test_a_desktops_driver_says_its_version(tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\nGCC\n")
    assert by_name(tmp_path)["driver"].found == "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06"


def test_a_gpu_that_fails_points_at_the_lines_above(
    tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise BackendError("no usable NVIDIA GPU (cuInit failed)", remedy="see what `rdedge doctor` says")

    monkeypatch.setattr(doctor_verb, "CudaDevice", fail)
    assert by_name(tmp_path)["GPU"].remedy == "see the lines above"


def test_the_command_says_what_can_run(no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "missing  tensorrt " in out and out.endswith("\nthe line can run on: onnxruntime, openvino\n")


def test_nothing_to_run_on_is_exit_code_2(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, library, None)
    assert main(["doctor"]) == 2
    assert "no backend can run here" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["backends"] == []
    assert {"name": "onnxruntime", "status": "missing"}.items() <= next(
        finding for finding in told["findings"] if finding["name"] == "onnxruntime"
    ).items()


def test_a_jetson_that_throttles_now(jetson: Path) -> None:
    for name, value in (("type", "gpu-throttle-alert"), ("cur_state", "0")):
        write(jetson, f"sys/class/thermal/cooling_device3/{name}", value)
    for name, value in (("type", "tj-thermal"), ("temp", "98500")):
        write(jetson, f"sys/class/thermal/thermal_zone0/{name}", value)
    assert (by_name(jetson)["heat"].status, by_name(jetson)["heat"].found) == ("ok", "tj 98 °C")
    write(jetson, "sys/class/thermal/cooling_device3/cur_state", "1")
    heat = by_name(jetson)["heat"]
    assert (heat.status, heat.found) == ("warning", "slows down gpu; tj 98 °C") and "rdedge power" in heat.remedy


def test_clocks_of_the_gpu_count_too(jetson: Path) -> None:
    for which, hz in (("min", 306000000), ("max", 1020000000)):
        write(jetson, f"sys/class/devfreq/17000000.gpu/{which}_freq", str(hz))
    assert by_name(jetson)["clocks"].status == "warning"
    write(jetson, "sys/class/devfreq/17000000.gpu/min_freq", "1020000000")
    assert by_name(jetson)["clocks"].found == "cpu0 at 1728 MHz, fixed; gpu at 1020 MHz, fixed"


def test_a_jetson_without_its_power_modes(jetson: Path) -> None:
    (jetson / "etc/nvpmodel.conf").unlink()
    mode = by_name(jetson)["power mode"]
    assert (mode.status, mode.found) == (
        "warning",
        "/etc/nvpmodel.conf cannot be read",
    ) and "apt install" in mode.remedy
