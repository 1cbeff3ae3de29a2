"""A Jetson's clocks, temperatures and power while something is measured, from the lines of `tegrastats`.

All but throttling, which it does not tell: that is read where the line reads it, by `rdedge.board.thermal`, but once a
second only; the rest is the work of a process of its own and does not disturb what is measured.

Source: https://docs.nvidia.com/jetson/archives/r36.4/DeveloperGuide/AT/JetsonLinuxDevelopmentTools/TegrastatsUtility.html
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from rdedge.bench.record import Board
from rdedge.board.thermal import Heat, is_temperature, read_heat

_INTERVAL_MS = 100
_STOP_S = 5.0
_LOADED_PERCENT = 50.0
_SAG = 0.95  # clocks read within some per cent of what was set
_HEAT_EVERY_S = 1.0

_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_RAM = re.compile(r"\bRAM (\d+)/\d+MB")
_TEMPERATURE = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
_RAIL = re.compile(r"\b(\w+) (\d+)mW/\d+mW")
# Rails that together are the module's input: of Orin Nano and NX, of AGX Orin, of AGX Thor.
_MODULE_RAILS = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSample:
    """One line of tegrastats; ``at_s``: ``time.monotonic`` when it came. ``gpu_mhz``: the fastest cluster's. ``heat``:
    what the kernel says of throttling, about once a second."""

    at_s: float
    gpu_percent: float | None
    gpu_mhz: float | None
    cpu_mhz: float | None
    ram_mb: float | None
    temperatures_c: dict[str, float]
    rails_mw: dict[str, float]
    heat: Heat | None = None

    @property
    def module_mw(self) -> float | None:
        """Power of the whole module now; None where the rails are of no board known here."""
        for rails in _MODULE_RAILS:
            if all(rail in self.rails_mw for rail in rails):
                return sum(self.rails_mw[rail] for rail in rails)
        return None


def parse_line(line: str, at_s: float) -> BoardSample | None:
    """What a line of tegrastats says; None for one that is none of its reports. Of "now/average" it takes the now."""
    ram = _RAM.search(line)
    if ram is None:
        return None
    gpu = _GPU.search(line)
    percent, clocks = gpu.groups() if gpu is not None else (None, None)
    cpu = _CPU.search(line)
    cpu_clocks = [float(core.partition("@")[2]) for core in cpu.group(1).split(",") if "@" in core] if cpu else []
    return BoardSample(
        at_s=at_s,
        gpu_percent=None if percent is None else float(percent),
        gpu_mhz=max(map(float, filter(None, clocks.split(",")))) if clocks else None,
        cpu_mhz=max(cpu_clocks) if cpu_clocks else None,
        ram_mb=float(ram.group(1)),
        temperatures_c={name: float(c) for name, c in _TEMPERATURE.findall(line) if is_temperature(float(c))},
        rails_mw={name: float(mw) for name, mw in _RAIL.findall(line)},
    )


def summarise(samples: list[BoardSample], *, began_s: float, ended_s: float, verdicts: int) -> Board | None:
    """The board between two moments of ``time.monotonic``; None without a sample of that time."""
    inside = [sample for sample in samples if began_s <= sample.at_s <= ended_s]
    if not inside:
        return None
    powers_mw = [mw for sample in inside if (mw := sample.module_mw) is not None]
    power_w = float(np.mean(powers_mw)) / 1e3 if powers_mw else None
    names = dict.fromkeys(name for sample in inside for name in sample.temperatures_c)
    used = next((rails for rails in _MODULE_RAILS if all(rail in inside[0].rails_mw for rail in rails)), ())
    return Board(
        samples=len(inside),
        gpu_mhz=_spread([sample.gpu_mhz for sample in inside]),
        cpu_mhz=_spread([sample.cpu_mhz for sample in inside]),
        temperatures_c={
            name: max(s.temperatures_c[name] for s in inside if name in s.temperatures_c) for name in names
        },
        ram_mb=max((s.ram_mb for s in inside if s.ram_mb is not None), default=None),
        power_w=power_w,
        power_rails=used,
        energy_mj=None if power_w is None or not verdicts else power_w * (ended_s - began_s) / verdicts * 1e3,
        throttling=_throttling(inside),
        timeline=[
            (
                s.at_s - began_s,
                s.gpu_mhz,
                max(s.temperatures_c.values(), default=None),
                None if s.module_mw is None else s.module_mw / 1e3,
            )
            for s in inside
        ],
    )


def _spread(values: list[float | None]) -> tuple[float, float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), float(np.median(known)), max(known)) if known else None


def _throttling(samples: list[BoardSample]) -> str:
    """The board's own word where it gives one, and what the clocks show."""
    heats = [sample.heat for sample in samples if sample.heat is not None and sample.heat.can_tell]
    told = [f"{part} slowed down for heat" for part in dict.fromkeys(part for heat in heats for part in heat.throttled)]
    for kind, count in heats[-1].over_currents.items() if heats else ():
        if events := count - heats[0].over_currents.get(kind, count):
            told.append(f"{kind} {events} times")
    if not heats:
        return _sag(samples)
    return f"{', '.join(told) or 'none'}, the board says; clocks: {_sag(samples)}"


def _sag(samples: list[BoardSample]) -> str:
    """A clock that falls while the GPU is loaded is the sign that tegrastats gives."""
    loaded = [
        s.gpu_mhz for s in samples if s.gpu_mhz and s.gpu_percent is not None and s.gpu_percent >= _LOADED_PERCENT
    ]
    if len(loaded) < 2:
        return "not known: the GPU was loaded by half in fewer than two samples"
    if min(loaded) >= _SAG * max(loaded):
        return f"no sign: {min(loaded):.0f} to {max(loaded):.0f} MHz under load"
    return (
        f"the GPU's clock fell from {max(loaded):.0f} to {min(loaded):.0f} MHz under load: throttled, or scaled with "
        "the load where `jetson_clocks` has not fixed it"
    )


class Tegrastats:
    """Runs `tegrastats` while it is entered, where the machine has it. ``samples`` grow meanwhile.

    ``root``: where ``sys`` is."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.samples: list[BoardSample] = []
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Tegrastats:
        program = shutil.which("tegrastats")
        if program is not None:
            self._child = subprocess.Popen(
                [program, "--interval", str(_INTERVAL_MS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
            self._reader = threading.Thread(target=self._read, name="rdedge-tegrastats", daemon=True)
            self._reader.start()
        return self

    def _read(self) -> None:
        assert self._child is not None and self._child.stdout is not None
        heat_at_s = -_HEAT_EVERY_S
        for line in self._child.stdout:
            sample = parse_line(line, time.monotonic())
            if sample is None:
                continue
            if sample.at_s - heat_at_s >= _HEAT_EVERY_S:
                sample, heat_at_s = replace(sample, heat=read_heat(self._root)), sample.at_s
            self.samples.append(sample)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._child is None or self._reader is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(_STOP_S)
        if self._child.stdout is not None and not self._reader.is_alive():
            self._child.stdout.close()
