"""Heat: temperatures of the chip, and whether the board slows down for heat or current.

https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance.html, "Thermal Management"
and "Over-current Throttling".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rdedge.board.machine import number_in, text_of

_ALERT = "-throttle-alert"  # hot-surface-alert is none: it warns of a case one should not touch, and slows nothing down
_PLAUSIBLE_C = (-40.0, 150.0)
_COUNTER = re.compile(r"oc([123])_event_cnt")
OVER_CURRENTS = {"1": "under-voltage", "2": "average over-current", "3": "instantaneous over-current"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """One moment. ``temperatures_c``: by thermal zone; ``alerts``: by part of the chip, whether it is slowed down for
    heat; ``over_currents``: events since boot, by kind: at each the board slows down for a moment."""

    temperatures_c: dict[str, float]
    alerts: dict[str, bool]
    over_currents: dict[str, int]

    @property
    def can_tell(self) -> bool:
        """Whether the machine says when it throttles: a Jetson does, a desktop does not."""
        return bool(self.alerts or self.over_currents)

    @property
    def throttled(self) -> list[str]:
        """Parts of the chip that are slowed down for heat."""
        return [part for part, is_active in self.alerts.items() if is_active]

    @property
    def hottest(self) -> str:
        """The hottest zone in words, "" where there is none."""
        if not self.temperatures_c:
            return ""
        zone = max(self.temperatures_c, key=lambda name: self.temperatures_c[name])
        return f"{zone} {self.temperatures_c[zone]:.0f} °C"


def read_heat(root: Path) -> Heat:
    """From some dozen files of the kernel; one that cannot be read is left out. Raises nothing."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number)
    devices = sorted((root / "sys/class/thermal").glob("cooling_device*"), key=_number)
    temperatures_c: dict[str, float] = {}
    alerts: dict[str, bool] = {}
    for device in devices:  # before the temperatures, so that an alert's is never that of before
        kind, state = _kind(device), number_in(device / "cur_state")
        if kind.endswith(_ALERT) and state is not None:
            alerts[kind.removesuffix(_ALERT)] = state > 0
    for zone in zones:
        name, millidegrees = _kind(zone).removesuffix("-thermal"), number_in(zone / "temp")
        if millidegrees is not None and is_temperature(millidegrees / 1e3):
            temperatures_c[name] = max(millidegrees / 1e3, temperatures_c.get(name, _PLAUSIBLE_C[0]))
    return Heat(temperatures_c=temperatures_c, alerts=alerts, over_currents=_over_currents(root))


def is_temperature(celsius: float) -> bool:
    """Whether a sensor's answer is one: that of a part that is off says -256."""
    return _PLAUSIBLE_C[0] < celsius < _PLAUSIBLE_C[1]


def _over_currents(root: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        which, count = _COUNTER.fullmatch(path.name), number_in(path)
        if which is not None and count is not None:
            counts[OVER_CURRENTS[which[1]]] = count
    return counts


def _kind(folder: Path) -> str:
    return (text_of(folder / "type") or "").strip()


def _number(folder: Path) -> int:
    return int(re.sub(r"\D", "", folder.name) or 0)
