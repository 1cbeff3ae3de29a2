"""`rdedge power` on pretended boards: modes by name on each of them, clocks, fan, and tools that record their calls."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge import power_verb
from rdedge.board.clocks import are_fixed, read_clocks
from rdedge.board.fan import read_fan, set_fan
from rdedge.board.nvpmodel import current_mode, read_modes, set_mode
from rdedge.cli import main
from rdedge.errors import UsageError

PREAMBLE = "< PARAM TYPE=CLOCK NAME=GPU >\nMAX_FREQ /sys/class/devfreq/17000000.gpu/max_freq\n\n"
FAN_CONF = """\
POLLING_INTERVAL 2

<FAN 1>
\tTMARGIN ENABLED
\tFAN_GOVERNOR cont {
\t\tSTEP_SIZE 10
\t}
\tFAN_PROFILE cool {
\t\t#TEMP HYST PWM RPM
\t\t0 0 255 2900
\t}
\tFAN_PROFILE quiet {
\t\t0 0 255 2900
\t}
\tFAN_DEFAULT_CONTROL close_loop
\tFAN_DEFAULT_PROFILE quiet
\tFAN_DEFAULT_GOVERNOR cont
\tKICKSTART_PWM 64
"""
# Keeps the mode's number in a file; MODES_WITH_REBOOT answer as nvpmodel does, and wait for a word.
NVPMODEL = """\
#!/bin/sh
here=$(dirname "$0")/..
echo "nvpmodel $*" >> "$here/calls"
number=$(cat "$here/mode")
if [ "$1" = -q ]; then
    sed -n "s/^< POWER_MODEL ID=$number NAME=\\(.*\\) >/NV Power Mode: \\1/p" "$here/etc/nvpmodel.conf"
    echo "$number"
    exit 0
fi
case " $MODES_WITH_REBOOT " in *" $2 "*)
    echo "NVPM WARN: Reboot required for changing to this power mode: $2"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read answer
    [ "$answer" = YES ] && echo reboot >> "$here/calls" && exit 0
    echo "NVPM ERROR: optMask is 1, no request for power mode"
    exit 255
esac
[ -n "$IGNORES" ] || echo "$2" > "$here/mode"
"""
RECORDS = '#!/bin/sh\necho "$(basename "$0") $*" >> "$(dirname "$0")/../calls"\n'


def mode_section(number: int, name: str, cores: int, cpu_khz: int, gpu_hz: int, emc_hz: int) -> str:
    online = "".join(f"CPU_ONLINE CORE_{core} {int(core < cores)}\n" for core in range(6))
    return (
        f"< POWER_MODEL ID={number} NAME={name} >\n{online}TPC_POWER_GATING TPC_PG_MASK 240\n"
        f"CPU_A78_0 MIN_FREQ 729600\nCPU_A78_0 MAX_FREQ {cpu_khz}\nCPU_A78_4 MAX_FREQ {cpu_khz}\n"
        f"GPU MIN_FREQ 0\nGPU MAX_FREQ {gpu_hz}\nEMC MAX_FREQ {emc_hz}\n\n"
    )


def nano_super() -> str:
    """The Orin Nano Super's own figures."""
    return (
        PREAMBLE
        + mode_section(0, "15W", 6, 1497600, 612000000, 2133000000)
        + mode_section(1, "25W", 6, 1344000, 918000000, 3199000000)
        + mode_section(2, "MAXN_SUPER", 6, -1, -1, -1)
        + mode_section(3, "7W", 4, 960000, 408000000, 2133000000)
        + "# mandatory section\n< PM_CONFIG DEFAULT=1 >\n"
    )


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of an Orin Nano Super in 25W, with tools that record their calls in ``calls``."""
    write(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit Super\0")
    write(tmp_path, "etc/nvpmodel.conf", nano_super())
    write(tmp_path, "mode", "1\n")
    write(tmp_path, "calls", "")
    write(tmp_path, "etc/nvpower/nvfancontrol.conf", FAN_CONF)
    (tmp_path / "etc/nvfancontrol.conf").symlink_to("nvpower/nvfancontrol.conf")
    write(tmp_path, "var/lib/nvfancontrol/status", "quiet\n")
    for tool, script in (("nvpmodel", NVPMODEL), ("jetson_clocks", RECORDS), ("systemctl", RECORDS)):
        write(tmp_path, f"bin/{tool}", script).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    set_clocks(tmp_path, lowest=115200, gpu_lowest=306000000)
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "pwmfan\n")
    write(tmp_path, "sys/class/hwmon/hwmon0/pwm1", "51\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/name", "pwm_tach\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/rpm", "1210\n")
    return tmp_path


def set_clocks(root: Path, *, lowest: int, gpu_lowest: int) -> None:
    for core in (0, 1):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        if core == 1:  # shares the folder of its cluster
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            if not (root / folder).exists():
                (root / folder).symlink_to("../cpu0/cpufreq")
            continue
        for which, khz in (("cur", 729600), ("min", lowest), ("max", 1344000)):
            write(root, f"{folder}/scaling_{which}_freq", f"{khz}\n")
    for which, hz in (("cur", 306000000), ("min", gpu_lowest), ("max", 918000000)):
        write(root, f"sys/class/devfreq/17000000.gpu/{which}_freq", f"{hz}\n")


def power(root: Path, *arguments: str) -> int:
    """The verb, on a board of ours."""
    parser = argparse.ArgumentParser()
    power_verb.add_arguments(parser)
    return power_verb.execute(parser.parse_args(arguments), root)


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines()


def test_limits_of_each_mode_are_its_own(board: Path) -> None:
    assert [f"{mode.name}: {mode}" for mode in read_modes(board)] == [
        "15W: 6 cores, CPU up to 1498 MHz, GPU up to 612 MHz, memory up to 2133 MHz",
        "25W: 6 cores, CPU up to 1344 MHz, GPU up to 918 MHz, memory up to 3199 MHz",
        "MAXN_SUPER: 6 cores, CPU unlimited, GPU unlimited, memory unlimited",
        "7W: 4 cores, CPU up to 960 MHz, GPU up to 408 MHz, memory up to 2133 MHz",
    ]


def test_the_mode_in_force_is_known_without_the_tool(board: Path) -> None:
    modes = read_modes(board)
    assert current_mode(board, modes) == "25W"
    (board / "bin/nvpmodel").unlink()
    assert current_mode(board, modes) is None
    write(board, "var/lib/nvpmodel/status", "pmode:0003\n")
    assert current_mode(board, modes) == "7W"


def test_everything_is_shown(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(board, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(board, "sys/class/thermal/thermal_zone0/temp", "51250\n")
    write(board, "sys/class/thermal/cooling_device0/type", "gpu-throttle-alert\n")
    write(board, "sys/class/thermal/cooling_device0/cur_state", "1\n")
    write(board, "sys/class/hwmon/hwmon3/oc3_event_cnt", "27\n")
    assert power(board) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "board        NVIDIA Jetson Orin Nano Developer Kit Super"
    assert lines[1] == "power mode   25W"
    assert [line for line in lines if line.startswith("  * ")] == [f"  * {'25W':<12} {read_modes(board)[1]}"]
    assert "    cpu0 at 730 MHz (115 to 1344)" in lines and not any("cpu1" in line for line in lines)
    assert "    gpu at 306 MHz (306 to 918)" in lines
    assert "fan          profile quiet (of cool, quiet), at 20%, 1210 rpm" in lines
    assert "temperature  cpu 51 °C" in lines
    assert any(line.startswith("heat         slows down gpu: ") for line in lines)
    assert any(line.startswith("current      27 x instantaneous over-current since boot: ") for line in lines)
    assert calls(board) == ["nvpmodel -q"], "showing changes nothing"


def test_the_state_as_json(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert power(board, "--json") == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["mode"], state["modes"][2]["gpu_mhz"], state["modes"][3]["cores"]) == ("25W", None, 4)
    assert [clock["is_fixed"] for clock in state["clocks"]] == [False, False]


@pytest.mark.parametrize("name", ["MAXN_SUPER", "maxn_super"])
def test_a_mode_is_set_by_its_name(board: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert power(board, "--mode", name) == 0
    assert capsys.readouterr().out.startswith("power mode MAXN_SUPER is in force, also after a reboot\n")
    assert "nvpmodel -m 2" in calls(board) and (board / "mode").read_text() == "2\n"


def test_the_mode_in_force_is_not_set_again(board: Path) -> None:
    assert set_mode(board, "25W", may_reboot=False) == "kept"
    assert calls(board) == ["nvpmodel -q"]


def test_a_mode_that_takes_a_reboot(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODES_WITH_REBOOT", "3")
    with pytest.raises(UsageError, match=r"7W takes a reboot; nothing was changed.*--mode 7W --reboot"):
        set_mode(board, "7W", may_reboot=False)
    assert "reboot" not in calls(board) and (board / "mode").read_text() == "1\n"
    assert power(board, "--mode", "7W", "--reboot", "--max-clocks") == 0
    assert calls(board)[-2] == "reboot", "and clocks are not fixed for the seconds that are left"
    assert "jetson_clocks " not in calls(board)


def test_what_cannot_be_set_is_refused(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no power mode '2' on this board; use one of: 15W, 25W, MAXN_SUPER, 7W"):
        power(board, "--mode", "2")
    with pytest.raises(UsageError, match="no fan profile 'loud' on this board; use one of: cool, quiet, max"):
        power(board, "--fan", "loud")
    with pytest.raises(UsageError, match="--reboot without --mode"):
        power(board, "--reboot")
    monkeypatch.setenv("IGNORES", "1")
    with pytest.raises(UsageError, match="nvpmodel was told 15W and the board is in 25W"):
        power(board, "--mode", "15W")


def test_only_root_sets(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for arguments, what in (
        (["--mode", "15W"], "setting a power mode"),
        (["--max-clocks"], "fixing the clocks"),
        (["--fan", "cool"], "setting the fan"),
    ):
        with pytest.raises(UsageError, match=f"{what} needs root; run it as `sudo"):
            power(board, *arguments)
    assert {call for call in calls(board) if call != "nvpmodel -q"} == set()
    assert power(board) == 0, "everyone may look"


def test_clocks_are_fixed(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not are_fixed(read_clocks(board)) and not are_fixed([])
    set_clocks(board, lowest=1344000, gpu_lowest=306000000)
    assert not are_fixed(read_clocks(board)), "the GPU's may still fall"
    assert power(board, "--max-clocks") == 0
    assert "jetson_clocks " in calls(board)
    set_clocks(board, lowest=1344000, gpu_lowest=918000000)
    assert are_fixed(read_clocks(board))


def test_a_fan_profile_wins_over_what_the_service_remembers(board: Path) -> None:
    real = board / "etc/nvpower/nvfancontrol.conf"
    real.chmod(0o640)
    set_fan(board, "cool")
    assert real.read_text() == FAN_CONF.replace("DEFAULT_PROFILE quiet", "DEFAULT_PROFILE cool")
    assert (board / "etc/nvfancontrol.conf").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert not (board / "var/lib/nvfancontrol/status").exists()
    assert calls(board) == ["systemctl stop nvfancontrol", "systemctl start nvfancontrol"]
    assert read_fan(board).profile == "cool"


def test_the_fan_is_never_left_without_its_service(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rdedge.board.fan.write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        set_fan(board, "cool")
    assert calls(board)[-1] == "systemctl start nvfancontrol" and read_fan(board).profile == "quiet"


def test_the_fan_at_full_speed(board: Path) -> None:
    set_fan(board, "max")
    assert calls(board) == ["jetson_clocks --fan"] and read_fan(board).profile == "quiet"


def test_tools_that_fail_are_told_of(board: Path) -> None:
    write(board, "bin/jetson_clocks", "#!/bin/sh\necho 'Error: cannot access'\nexit 3\n")
    with pytest.raises(UsageError, match="`jetson_clocks` failed with 3: Error: cannot access"):
        power(board, "--max-clocks")
    (board / "bin/jetson_clocks").unlink()
    with pytest.raises(UsageError, match="jetson_clocks is not installed; apt install"):
        power(board, "--max-clocks")


@pytest.mark.parametrize(("text", "problem"), [(None, "cannot be read"), (PREAMBLE, "declares no power mode")])
def test_a_board_without_modes_says_what_mends_it(board: Path, text: str | None, problem: str) -> None:
    (board / "etc/nvpmodel.conf").unlink()
    if text is not None:
        write(board, "etc/nvpmodel.conf", text)
    with pytest.raises(UsageError, match=f"/etc/nvpmodel.conf {problem}; apt install --reinstall nvidia-l4t-nvpmodel"):
        power(board)


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="this is a Jetson")
@pytest.mark.parametrize("arguments", [[], ["--mode", "MAXN"], ["--max-clocks"], ["--fan", "max"], ["--json"]])
def test_other_machines_are_refused_in_a_line(arguments: list[str], refused: Callable[..., str]) -> None:
    assert "this machine is no Jetson: /etc/nv_tegra_release is missing" in refused("power", *arguments)


@pytest.mark.jetson
@pytest.mark.skipif(not Path("/etc/nv_tegra_release").exists(), reason="needs a Jetson")
def test_a_real_board_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not lines[1].endswith("does not say") and sum(line.startswith("  * ") for line in lines) == 1
    assert any(line.startswith("temperature  ") and "°C" in line for line in lines), os.uname()
