"""Power modes of a Jetson: what /etc/nvpmodel.conf declares, which one is in force, and another one by its name.

Numbers of modes differ from board to board and from JetPack to JetPack (0 is MAXN on an AGX Orin and 15 W on an Orin
Nano Super), so a mode is named, and its number read. File format: the header of the file itself, and
https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rdedge.board.machine import answer_of, refuse_other_users, run_tool, text_of
from rdedge.errors import UsageError

_CONF = "etc/nvpmodel.conf"
_STATUS = "var/lib/nvpmodel/status"  # "pmode:0002": what was set last
_HEADER = re.compile(r"<\s*(\w+)\s+(.*?)\s*>")
_NEEDS_REBOOT = "Reboot required"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """``limits``: by name of parameter and argument, as in the file: ``limits["GPU", "MAX_FREQ"] == "918000000"``."""

    number: int
    name: str
    limits: dict[tuple[str, str], str]

    @property
    def cores(self) -> int:
        """Processor cores that are on; 0 where the file does not say."""
        return sum(value == "1" for (parameter, _), value in self.limits.items() if parameter == "CPU_ONLINE")

    def top_mhz(self, parameter: str) -> float | None:
        """Highest clock of ``CPU``, ``GPU`` or ``EMC``, the memory; None: not limited.

        The file has kHz for cores and Hz for the rest; 0 and below stand for no limit.
        """
        unit = 1e3 if parameter == "CPU" else 1e6
        values = [
            float(value)
            for (name, argument), value in self.limits.items()
            if argument == "MAX_FREQ" and (name == parameter or name.startswith(f"{parameter}_"))
        ]
        return None if not values or min(values) <= 0 else max(values) / unit

    def __str__(self) -> str:
        clocks = [
            f"{what} up to {mhz:.0f} MHz" if (mhz := self.top_mhz(parameter)) is not None else f"{what} unlimited"
            for what, parameter in (("CPU", "CPU"), ("GPU", "GPU"), ("memory", "EMC"))
        ]
        return ", ".join([*([f"{self.cores} cores"] if self.cores else []), *clocks])


def read_modes(root: Path) -> list[PowerMode]:
    """All modes of the board, in the file's order. Raises UsageError where there is no such file or none in it."""
    text = text_of(root / _CONF)
    modes = [] if text is None else parse_modes(text)
    if not modes:
        problem = "cannot be read" if text is None else "declares no power mode"
        raise UsageError(f"/{_CONF} {problem}", remedy="apt install --reinstall nvidia-l4t-nvpmodel")
    return modes


def parse_modes(text: str) -> list[PowerMode]:
    """Sections ``< POWER_MODEL ID=2 NAME=MAXN >`` of lines ``PARAMETER ARGUMENT VALUE``; others are no modes."""
    modes: list[PowerMode] = []
    limits: dict[tuple[str, str], str] = {}  # of the section we are in
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        header = _HEADER.fullmatch(line)
        words = line.split()
        if header is not None:
            limits = {}
            keys = dict(word.split("=", 1) for word in header[2].split() if "=" in word)
            if header[1] == "POWER_MODEL" and keys.get("ID", "").isdecimal() and keys.get("NAME"):
                modes.append(PowerMode(number=int(keys["ID"]), name=keys["NAME"], limits=limits))
        elif len(words) == 3:
            limits[words[0], words[1]] = words[2]
    return modes


def fastest(modes: Sequence[PowerMode]) -> PowerMode | None:
    """MAXN_SUPER where there is one, else MAXN; None where the file names neither."""
    named = [mode for mode in modes if mode.name.startswith("MAXN")]
    return max(named, key=lambda mode: "SUPER" in mode.name, default=None)


def current_mode(root: Path, modes: Sequence[PowerMode]) -> str | None:
    """The name of the mode in force, by nvpmodel or by what it keeps; None where neither says."""
    answer = answer_of(["nvpmodel", "-q"])
    told = next((line.partition(":")[2].strip() for line in answer.splitlines() if "Power Mode" in line), "")
    if told:
        return told
    kept = (text_of(root / _STATUS) or "").strip().removeprefix("pmode:")
    return next((mode.name for mode in modes if kept.isdecimal() and mode.number == int(kept)), None)


def mode_named(name: str, modes: Sequence[PowerMode]) -> PowerMode:
    """Whatever the case of its letters. Raises UsageError."""
    for mode in modes:
        if mode.name.casefold() == name.casefold():
            return mode
    raise UsageError(
        f"no power mode {name!r} on this board", remedy=f"use one of: {', '.join(mode.name for mode in modes)}"
    )


def set_mode(root: Path, name: str, *, may_reboot: bool) -> Literal["kept", "set", "rebooting"]:
    """Puts a mode in force, for good. Where it takes a reboot, reboots at once or, without ``may_reboot``, changes
    nothing. Raises UsageError."""
    modes = read_modes(root)
    mode = mode_named(name, modes)
    if current_mode(root, modes) == mode.name:
        return "kept"
    refuse_other_users("setting a power mode")
    said = run_tool(["nvpmodel", "-m", str(mode.number)], answer="YES\n" if may_reboot else "NO\n")
    if _NEEDS_REBOOT in said:
        if may_reboot:
            return "rebooting"
        raise UsageError(
            f"{mode.name} takes a reboot; nothing was changed",
            remedy=f"`rdedge power --mode {mode.name} --reboot` sets it and reboots at once",
        )
    now = current_mode(root, modes)
    if now != mode.name:
        raise UsageError(
            f"nvpmodel was told {mode.name} and the board is in {now}", remedy=f"sudo nvpmodel -m {mode.number}"
        )
    return "set"
