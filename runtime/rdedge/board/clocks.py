"""Clocks of the cores and the GPU: what they may do, what they do, and fixing them at their highest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdedge.board.machine import number_in, refuse_other_users, run_tool

_GPU_NAMES = ("gpu", "ga10b", "gv11b", "gp10b")  # JetPack 6 and 7 say gpu, 5 and 4 name the chip


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """One clock in MHz; ``now_mhz`` None where the system does not say."""

    name: str
    now_mhz: float | None
    lowest_mhz: float
    highest_mhz: float

    @property
    def is_fixed(self) -> bool:
        """It cannot fall while nothing is to do, so the first frame after a pause is as fast as the others."""
        return self.lowest_mhz == self.highest_mhz

    def __str__(self) -> str:
        now = "" if self.now_mhz is None else f" at {self.now_mhz:.0f} MHz"
        if self.is_fixed:
            return f"{self.name}{now or f' at {self.highest_mhz:.0f} MHz'}, fixed"
        return f"{self.name}{now} ({self.lowest_mhz:.0f} to {self.highest_mhz:.0f})"


def read_clocks(root: Path) -> list[Clock]:
    """Each cluster of cores, then each clock of the GPU; empty where the system shows none."""
    return [*_cores(root), *_gpu(root)]


def are_fixed(clocks: Sequence[Clock]) -> bool:
    """All of them, and there are some."""
    return bool(clocks) and all(clock.is_fixed for clock in clocks)


def fix_clocks() -> None:
    """Cores, GPU and memory at the highest clocks of the power mode, until the next reboot. Raises UsageError."""
    refuse_other_users("fixing the clocks")
    run_tool(["jetson_clocks"])


def _cores(root: Path) -> Iterator[Clock]:
    """Cores of a cluster share one folder, to which each has a link."""
    seen = set()
    for folder in sorted(
        (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"), key=lambda f: int(f.parent.name[3:])
    ):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        yield from _clock(folder.parent.name, folder, "scaling_{}_freq", 1e3)


def _gpu(root: Path) -> Iterator[Clock]:
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if any(name in folder.name for name in _GPU_NAMES):
            yield from _clock(folder.name.rpartition(".")[2], folder, "{}_freq", 1e6)


def _clock(name: str, folder: Path, file: str, per_mhz: float) -> Iterator[Clock]:
    now, lowest, highest = (number_in(folder / file.format(which)) for which in ("cur", "min", "max"))
    if lowest is not None and highest is not None:
        yield Clock(
            name=name,
            now_mhz=None if now is None else now / per_mhz,
            lowest_mhz=lowest / per_mhz,
            highest_mhz=highest / per_mhz,
        )
