"""tegrastats: lines recorded on real boards are read, and what they say stands beside the numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from rdedge.bench.machine import machine
from rdedge.bench.record import read_record
from rdedge.bench.tegra import BoardSample, Tegrastats, parse_line, summarise
from rdedge.board.thermal import Heat
from rdedge.cli import main

# Orin Nano Super, L4T 36.4.3, idle and under load.
NANO_IDLE = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,0%@729,0%@729,0%@729,"
    "0%@729,0%@729] EMC_FREQ 15%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.562C "
    "soc2@46.593C soc0@48.625C gpu@49.625C tj@49.312C soc1@47.937C VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW "
    "VDD_SOC 2720mW/3659mW"
)
NANO_BUSY = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497,2%@729,1%@729,0%@729,"
    "1%@729,0%@729] EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@57.125C "
    "soc2@55.093C soc0@56.625C gpu@58.625C tj@58.312C soc1@55.937C VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW "
    "VDD_SOC 3120mW/3659mW"
)
# AGX Orin, L4T 36.4.4: no sensor named gpu, two clusters, no rail of the whole module.
AGX_ORIN = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112,8%@2035,"
    "14%@2201,46%@1267,47%@1267,2%@1267,10%@1267,4%@1036,5%@1036,6%@1036,10%@1036] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] "
    "NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 "
    "cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW "
    "VIN_SYS_5V0 4707mW/4707mW"
)
# AGX Thor, L4T 38.4: the GPU's load has no number.
THOR = (
    "05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@972,0%@972,0%@972,"
    "1%@972,0%@972,1%@972,1%@972,0%@972,0%@972,3%@972,0%@972,0%@972,1%@972] EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] "
    "NVENC0_FREQ @0 NVENC1_FREQ @0 NVDEC0_FREQ @0 NVDEC1_FREQ @0 NVJPG0_FREQ @0 VIC off OFA_FREQ @0 PVA0_FREQ off "
    "APE 300 cpu@34.468C tj@34.5C soc012@33.781C soc345@34.5C VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW "
    "VIN_SYS_5V0 4126mW/4126mW"
)
# AGX Orin, L4T 35: sensors of parts that are off.
AGX_ORIN_35 = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C "
    "SOC2@40.093C Tdiode@33C SOC0@41.093C "
    "CV1@-256C GPU@-256C tj@44.343C SOC1@41.25C CV2@-256C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW "
    "VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)


def read(line: str, at_s: float = 0.0) -> BoardSample:
    sample = parse_line(line, at_s)
    assert sample is not None
    return sample


@pytest.mark.parametrize(
    ("line", "gpu_percent", "gpu_mhz", "cpu_mhz", "ram_mb", "module_mw"),
    [
        (NANO_IDLE, 0.0, 305.0, 1497.0, 1343.0, 5251.0),
        (NANO_BUSY, 99.0, 612.0, 1497.0, 6712.0, 16321.0),
        (AGX_ORIN, 0.0, 0.0, 2201.0, 18207.0, 2412.0 + 1607.0 + 4707.0),
        (AGX_ORIN_35, 0.0, 0.0, 729.0, 4321.0, 2340.0 + 390.0 + 4025.0),
        (THOR, None, 0.0, 972.0, 4208.0, 0.0 + 4165.0 + 4126.0),
        (NANO_BUSY.replace("99%@[612]", "99%@612"), 99.0, 612.0, 1497.0, 6712.0, 16321.0),
        (NANO_BUSY.replace("GR3D_FREQ 99%@[612] ", ""), None, None, 1497.0, 6712.0, 16321.0),
        (NANO_BUSY.replace("99%@[612]", "99%"), 99.0, None, 1497.0, 6712.0, 16321.0),
        (NANO_BUSY.replace("VDD_IN", "VDD_MOON"), 99.0, 612.0, 1497.0, 6712.0, None),
    ],
    ids=["nano idle", "nano busy", "agx orin", "agx orin 35", "thor", "no brackets", "no gpu", "no clock", "odd rails"],
)
def test_a_line_is_read(
    line: str, gpu_percent: float | None, gpu_mhz: float | None, cpu_mhz: float, ram_mb: float, module_mw: float | None
) -> None:
    sample = read(line)
    got = (sample.gpu_percent, sample.gpu_mhz, sample.cpu_mhz, sample.ram_mb, sample.module_mw)
    assert got == (gpu_percent, gpu_mhz, cpu_mhz, ram_mb, module_mw)


def test_temperatures_are_those_of_sensors_that_are_on() -> None:
    assert read(NANO_BUSY).temperatures_c == {
        "cpu": 57.125,
        "soc2": 55.093,
        "soc0": 56.625,
        "gpu": 58.625,
        "tj": 58.312,
        "soc1": 55.937,
    }
    assert "GPU" not in read(AGX_ORIN_35).temperatures_c and read(AGX_ORIN_35).temperatures_c["tj"] == 44.343


@pytest.mark.parametrize("line", ["", "tegrastats: must be root", "\x00\xff", "RAM"])
def test_what_is_no_report_is_none(line: str) -> None:
    assert parse_line(line, 0.0) is None


def test_a_phase_is_summed_up_from_its_own_samples() -> None:
    samples = [read(NANO_IDLE, 0.0), read(NANO_BUSY, 1.0), read(NANO_BUSY, 2.0), read(NANO_IDLE, 9.0)]
    board = summarise(samples, began_s=0.5, ended_s=2.5, verdicts=40)
    assert board is not None
    assert board.samples == 2 and board.gpu_mhz == (612.0, 612.0, 612.0) and board.ram_mb == 6712.0
    assert board.power_w == pytest.approx(16.321) and board.power_rails == ("VDD_IN",)
    assert board.energy_mj == pytest.approx(16.321 * 2.0 / 40 * 1e3), "the whole module's power, by verdicts"
    assert board.temperatures_c["gpu"] == 58.625
    assert board.throttling == "no sign: 612 to 612 MHz under load"
    assert board.timeline[0] == (0.5, 612.0, 58.625, 16.321)


def test_a_sample_at_the_very_end_lies_within_its_phase() -> None:
    board = summarise([read(NANO_BUSY, 2.4998)], began_s=0.0, ended_s=2.4998, verdicts=1)
    assert board is not None and board.timeline[0][0] == 2.4998, "not rounded to a moment after the phase"


def test_nothing_is_said_of_a_time_without_samples() -> None:
    assert summarise([read(NANO_BUSY, 1.0)], began_s=2.0, ended_s=3.0, verdicts=4) is None
    assert summarise([], began_s=0.0, ended_s=3.0, verdicts=4) is None


def test_without_verdicts_or_known_rails_there_is_no_energy() -> None:
    board = summarise([read(NANO_BUSY, 1.0)], began_s=0.0, ended_s=3.0, verdicts=0)
    assert board is not None and board.energy_mj is None and board.power_w == pytest.approx(16.321)
    odd = summarise([read(NANO_BUSY.replace("VDD_IN", "X"), 1.0)], began_s=0.0, ended_s=3.0, verdicts=3)
    assert odd is not None and odd.power_w is None and odd.energy_mj is None and odd.power_rails == ()


def test_a_clock_that_falls_under_load_is_told() -> None:
    busy = read(NANO_BUSY, 1.0)
    sagged = replace(busy, at_s=1.5, gpu_mhz=420.0)
    board = summarise([busy, sagged, replace(read(NANO_IDLE), at_s=2.0)], began_s=0.0, ended_s=3.0, verdicts=1)
    assert board is not None and board.throttling.startswith("the GPU's clock fell from 612 to 420 MHz under load")
    near = summarise([busy, replace(busy, gpu_mhz=607.0)], began_s=0.0, ended_s=3.0, verdicts=1)
    assert near is not None and near.throttling == "no sign: 607 to 612 MHz under load"


def test_the_board_s_own_word_on_throttling_comes_first() -> None:
    def heat(*throttled: str, events: int) -> Heat:
        alerts = {part: part in throttled for part in ("cpu", "gpu")}
        return Heat(temperatures_c={}, alerts=alerts, over_currents={"average over-current": events})

    busy = read(NANO_BUSY, 1.0)
    samples = [
        replace(busy, heat=heat(events=4)),
        replace(busy, at_s=1.5),
        replace(busy, at_s=2.0, heat=heat(events=4)),
    ]
    calm = summarise(samples, began_s=0.0, ended_s=3.0, verdicts=1)
    assert calm is not None and calm.throttling == "none, the board says; clocks: no sign: 612 to 612 MHz under load"
    samples[2] = replace(samples[2], heat=heat("gpu", events=7))
    hot = summarise(samples, began_s=0.0, ended_s=3.0, verdicts=1)
    assert hot is not None
    assert hot.throttling.startswith("gpu slowed down for heat, average over-current 3 times, the board says; clocks: ")
    before = summarise(samples, began_s=0.0, ended_s=1.8, verdicts=1)
    assert before is not None and before.throttling.startswith("none, the board says"), "of its own phase alone"


def test_an_idle_or_silent_gpu_leaves_throttling_unknown() -> None:
    for line in (NANO_IDLE, THOR):
        board = summarise([read(line, 1.0), read(line, 2.0)], began_s=0.0, ended_s=3.0, verdicts=1)
        assert board is not None and board.throttling.startswith("not known")


def test_the_program_is_read_while_it_runs_and_ended(play_tegrastats: Callable[[list[str]], Path]) -> None:
    pid_file = play_tegrastats(["starting", NANO_IDLE, NANO_BUSY])
    began_s = time.monotonic()
    with Tegrastats() as board:
        while len(board.samples) < 3 and time.monotonic() < began_s + 60:
            time.sleep(0.01)
    assert [sample.gpu_mhz for sample in board.samples[:3]] == [305.0, 612.0, 305.0]
    assert all(began_s <= sample.at_s <= time.monotonic() for sample in board.samples)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_throttling_is_read_beside_it(play_tegrastats: Callable[[list[str]], Path], tmp_path: Path) -> None:
    for path, text in {"type": "gpu-throttle-alert\n", "cur_state": "1\n"}.items():
        file = tmp_path / "sys/class/thermal/cooling_device0" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    play_tegrastats([NANO_BUSY])
    began_s = time.monotonic()
    with Tegrastats(tmp_path) as board:
        while len(board.samples) < 3 and time.monotonic() < began_s + 60:
            time.sleep(0.01)
    first = board.samples[0]
    assert first.heat is not None and first.heat.throttled == ["gpu"]
    heated = [sample.at_s for sample in board.samples if sample.heat is not None]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(heated)), "once a second"


def test_each_phase_has_the_board_beside_it(
    bundle: Path,
    tmp_path: Path,
    play_tegrastats: Callable[[list[str]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    play_tegrastats([NANO_BUSY])
    files = [tmp_path / name for name in ("m.json", "m.html")]
    options = ["--frames", "2", "--warm-up", "0", "--cold-starts", "0", "--idle-gap", "0.05"]
    assert main(["bench", str(bundle), *options, "--json", str(files[0]), "--html", str(files[1])]) == 0
    phase = read_record(files[0]).phases[1]
    board = phase.board
    assert board is not None and board.power_w == pytest.approx(16.321)
    assert board.energy_mj == pytest.approx(16.321 * phase.seconds / 20 * 1e3)
    assert all(0.0 <= row[0] <= phase.seconds and row[1:] == (612.0, 58.625, 16.321) for row in board.timeline)
    out = capsys.readouterr().out
    assert "GPU clock" in out and "612 to 612 MHz" in out and "highest 58.6 C (gpu)" in out
    assert "16.32 W (VDD_IN)" in out and "mJ a verdict, of the whole module" in out
    assert 'aria-label="GPU clock over time"' in files[1].read_text()


def test_a_machine_without_it_has_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Tegrastats() as board:
        pass
    assert board.samples == []


def test_a_jetson_says_its_board_mode_and_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvpmodel = tmp_path / "bin" / "nvpmodel"
    for path, text in {
        "proc/cpuinfo": "processor\t: 0\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
        "bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: 25W'\necho 1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    nvpmodel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nvpmodel.parent}{os.pathsep}{os.environ['PATH']}")
    facts = machine(tmp_path)
    assert facts["board"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (facts["L4T"], facts["power mode"]) == ("36.4.3", "25W, not the fastest, MAXN_SUPER")
    assert facts["clocks"] == "may fall between parts"
    assert "board" not in machine(tmp_path / "elsewhere")
