"""What install.sh would do on every JetPack it knows, and what it says to boards that it does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
INSTALLER = ROOT / "jetson/install.sh"
SCRIPTS = sorted((ROOT / "jetson").rglob("*.sh"))
ORIN, THOR, XAVIER = "nvidia,tegra234", "nvidia,tegra264", "nvidia,tegra194"
MakeBoard = Callable[..., Any]

JETPACKS = {  # as its release file says it: board, JetPack, CUDA
    "36.2.0": (ORIN, "6.0", "12.2"),
    "36.3.0": (ORIN, "6.0", "12.2"),
    "36.4.0": (ORIN, "6.1", "12.6"),
    "36.4.3": (ORIN, "6.2", "12.6"),
    "36.4.4": (ORIN, "6.2.1", "12.6"),
    "36.4.7": (ORIN, "6.2.1", "12.6"),
    "36.5.0": (ORIN, "6.2.2", "12.6"),
    "38.2.0": (THOR, "7.0", "13.0"),
    "38.2.1": (THOR, "7.0", "13.0"),
    "38.4.0": (THOR, "7.1", "13.0"),
    "39.1.0": (THOR, "7.2", "13.2"),
    "39.2.0": (ORIN, "7.2", "13.2"),
}
WRONG = {  # release file, chip, nvidia-l4t-core, machine, what is said
    "no Jetson": (None, "", "", "x86_64", "this is no Jetson (x86_64, no /etc/nv_tegra_release); on another computer"),
    "JetPack 4": ("R32 (release), REVISION: 7.4", "nvidia,tegra210", "32.7.4", "aarch64", "L4T 32.7.4 is JetPack 4"),
    "JetPack 5": (
        "R35 (release), REVISION: 4.1",
        XAVIER,
        "35.4.1",
        "aarch64",
        "L4T 35.4.1 is JetPack 5, with Python 3.8",
    ),
    "newer": ("R41 (release), REVISION: 1.0", THOR, "41.1.0", "aarch64", "L4T 41.1.0 is not known to this script"),
    "copied": ("R36 (release), REVISION: 4.3", ORIN, "36.4.3", "x86_64", "but this machine is x86_64"),
    "Thor's on Orin": (
        "R38 (release), REVISION: 2.0",
        ORIN,
        "38.2.0",
        "aarch64",
        "is for thor, but this board's chip is: orin",
    ),
    "half updated": ("R36 (release), REVISION: 4.3", ORIN, "36.5.0", "aarch64", "but dpkg has nvidia-l4t-core 36.5.0-"),
    "garbled": ("Jetson", ORIN, "36.4.3", "aarch64", "/etc/nv_tegra_release says no release: # Jetson"),
}


def release_of(l4t: str) -> str:
    major, _, revision = l4t.partition(".")
    return f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025"


@pytest.mark.parametrize("l4t", JETPACKS)
def test_the_plan_of_every_jetpack(make_board: MakeBoard, l4t: str) -> None:
    chip, jetpack, cuda = JETPACKS[l4t]
    board = make_board(release_of(l4t), chip, core=l4t)
    done = board.run("bash", str(INSTALLER), "--dry-run", user="nobody:nogroup")
    assert done.returncode == 0, done.stderr
    name = "orin" if chip == ORIN else "thor"
    assert done.stdout.startswith(f"board: {name}, L4T {l4t}, JetPack {jetpack}, CUDA {cuda}, Python ")
    missing = re.search(r"missing: (.*)", done.stdout)
    assert missing is not None
    dashed = cuda.replace(".", "-")
    packages = set(missing.group(1).split())
    assert packages >= {"python3-opencv", "python3-libnvinfer", "python3-venv", f"cuda-cudart-dev-{dashed}"}
    assert {name for name in packages if name.startswith("cuda-")} == {
        f"cuda-{part}-{dashed}" for part in ("nvcc", "cudart-dev", "driver-dev", "profiler-api")
    }
    assert not any("torch" in package for package in packages)
    order = [
        "install --no-install-recommends",
        "pip wheel",
        "would make: /opt/rdedge/venvs/NEW with --system-site-packages",
        f"pycuda built against /usr/local/cuda-{cuda}",
        "would keep out: pip's OpenCV, torch",
        "would switch: /opt/rdedge/venv",
        "would run: groupadd --system rdedge",
        "would run: useradd --system --gid rdedge",
        "would run: usermod --gid rdedge --append --groups video,render,gpio,i2c,dialout,plugdev rdedge",
        "would run: mv -fT /usr/local/lib/systemd/system/rdedge@.service.rdedge-new",
        "would run: mv -fT /etc/udev/rules.d/60-rdedge-cameras.rules.rdedge-new",
        "done: ",
    ]
    places = [done.stdout.find(text) for text in order]
    assert places == sorted(places) and -1 not in places, list(zip(order, places, strict=True))
    assert board.changes() == set()


def test_what_is_there_is_not_asked_of_apt(make_board: MakeBoard) -> None:
    board = make_board(
        packages={"libopencv-python": "4.8.0-1-g6371ee1", "python3-libnvinfer": "10.7.0.23-1+cuda12.6", "g++": "4:11.2"}
    )
    done = board.run("bash", str(INSTALLER), "--dry-run")
    assert done.returncode == 0, done.stderr
    missing = done.stdout.partition("missing: ")[2].splitlines()[0].split()
    assert not {"python3-opencv", "libopencv-python", "python3-libnvinfer", "g++"} & set(missing)
    assert "OpenCV: libopencv-python" in done.stdout
    assert "TensorRT: 10.7.0.23-1+cuda12.6" in done.stdout


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "real run"])
def test_other_boards_are_refused_and_left_alone(make_board: MakeBoard, kind: str, options: list[str]) -> None:
    release, chip, core, machine, said = WRONG[kind]
    board = make_board(None if release is None else f"# {release}, GCID: 1", chip, core=core, machine=machine)
    done = board.run("bash", str(INSTALLER), *options)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("install.sh: error: ")]
    assert len(errors) == 1 and done.stderr.count("\n") == 1
    assert said in errors[0] and "; " in errors[0]
    assert board.changes("/var/log/rdedge-install.log") == set()


@pytest.mark.parametrize("options", [["--purge"], ["--wheels", "/nowhere"], ["--wheels"], ["--colour"]], ids=" ".join)
def test_wrong_options_change_nothing(options: list[str]) -> None:
    done = subprocess.run(["bash", INSTALLER, *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("apt-get install shellcheck")
    done = subprocess.run(
        ["shellcheck", "--external-sources", "--severity=style", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
