"""/etc/nvpmodel.conf as boards have it: modes by name, and of each board another number for the fastest."""

from __future__ import annotations

import pytest

from rdedge.board.nvpmodel import fastest, mode_named, parse_modes
from rdedge.errors import UsageError

# What stands above the modes in every file: the same words, but paths in place of values.
PREAMBLE = """\
# < POWER_MODEL ID=id_num NAME=mode_name >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
CORE_1 /sys/devices/system/cpu/cpu1/online

< PARAM TYPE=CLOCK NAME=GPU >
FREQ_TABLE /sys/class/devfreq/17000000.gpu/available_frequencies
MAX_FREQ /sys/class/devfreq/17000000.gpu/max_freq
MAX_FREQ_KNEXT /sys/devices/17000000.gpu/devfreq_dev/max_freq

< PARAM TYPE=CLOCK NAME=EMC >
MAX_FREQ /sys/kernel/nvpmodel_clk_cap/emc

###########################
# POWER_MODEL DEFINITIONS #
###########################
"""
# Names and numbers as JetPack has them: of each board another number for the fastest.
BOARDS = {
    "orin-nano": ({0: "15W", 1: "7W"}, None),
    "orin-nano-super": ({0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}, "MAXN_SUPER"),
    "orin-nx": ({0: "MAXN", 1: "10W", 2: "15W", 3: "25W"}, "MAXN"),
    "orin-nx-super": ({0: "MAXN_SUPER", 1: "10W", 2: "15W", 3: "25W", 4: "40W"}, "MAXN_SUPER"),
    "agx-orin": ({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}, "MAXN"),
    "thor": ({0: "MAXN", 1: "120W", 2: "90W", 3: "70W"}, "MAXN"),
    "both": ({0: "MAXN", 1: "MAXN_SUPER"}, "MAXN_SUPER"),
}


def section(number: int, name: str) -> str:
    return f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\nGPU MAX_FREQ 918000000\nEMC MAX_FREQ 0\n\n"


@pytest.mark.parametrize(("modes", "best"), BOARDS.values(), ids=BOARDS)
def test_the_fastest_mode_is_found_by_its_name_on_every_board(modes: dict[int, str], best: str | None) -> None:
    parsed = parse_modes(PREAMBLE + "".join(section(n, name) for n, name in modes.items()))
    assert {mode.number: mode.name for mode in parsed} == modes, "no section above the modes is one"
    found = fastest(parsed)
    assert (None if found is None else found.name) == best


@pytest.mark.parametrize(
    "text",
    [
        "<POWER_MODEL ID=2 NAME=MAXN>\nGPU MAX_FREQ 918000000\n",
        "\t< POWER_MODEL  ID=2  NAME=MAXN > # the fastest\r\nGPU  MAX_FREQ\t918000000 # Hz\r\n",
        "< POWER_MODEL NAME=MAXN ID=2 >\nGPU MAX_FREQ 918000000\nGPU X\n< PM_CONFIG DEFAULT=2 >\nGPU MAX_FREQ 1\n",
        "< POWER_MODEL ID=x NAME=Y >\n< POWER_MODEL ID=1 >\n< POWER_MODEL ID=2 NAME=MAXN >\nGPU MAX_FREQ 918000000\n",
    ],
    ids=["tight", "loose", "other-order", "without-number"],
)
def test_files_that_hands_have_changed(text: str) -> None:
    (mode,) = parse_modes(text)
    assert (mode.number, mode.name, mode.limits) == (2, "MAXN", {("GPU", "MAX_FREQ"): "918000000"})


def test_a_limit_that_is_no_number_or_not_there_is_none() -> None:
    (mode,) = parse_modes("< POWER_MODEL ID=0 NAME=X >\nEMC MAX_FREQ 0\nGPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on\n")
    assert mode.top_mhz("EMC") is mode.top_mhz("GPU") is mode.top_mhz("CPU") is None and mode.cores == 0
    assert str(mode) == "CPU unlimited, GPU unlimited, memory unlimited"


def test_names_are_found_whatever_their_case_and_numbers_are_no_names() -> None:
    modes = parse_modes(section(0, "15W") + section(2, "MAXN_SUPER"))
    assert mode_named("maxn_super", modes).number == 2
    with pytest.raises(UsageError, match="no power mode '0' on this board; use one of: 15W, MAXN_SUPER"):
        mode_named("0", modes)
