"""The fan: how fast it turns, and by which profile of nvfancontrol.

https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance.html, fan profile control
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rdedge.atomic import write_bytes
from rdedge.board.machine import number_in, refuse_other_users, run_tool, text_of
from rdedge.errors import UsageError

FULL_SPEED = "max"
_CONF = "etc/nvfancontrol.conf"
_STATUS = "var/lib/nvfancontrol/status"  # the profile of before, which wins over the file as long as it is there
_PROFILE = re.compile(r"^\s*FAN_PROFILE\s+(\w+)", re.MULTILINE)
_DEFAULT = re.compile(r"^(\s*FAN_DEFAULT_PROFILE\s+)(\w+)", re.MULTILINE)
_FULL_PWM = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Fan:
    """``profile`` is the one in force after a start, ``profiles`` all there are; ``power_share`` 0 to 1; None: not
    known."""

    profile: str | None
    profiles: tuple[str, ...]
    power_share: float | None
    rpm: int | None

    def __str__(self) -> str:
        known = []
        if self.profile is not None:
            known.append(f"profile {self.profile} (of {', '.join(self.profiles)})")
        if self.power_share is not None:
            known.append(f"at {self.power_share:.0%}")
        if self.rpm is not None:
            known.append(f"{self.rpm} rpm")
        return ", ".join(known) or "none that the system shows"


def read_fan(root: Path) -> Fan:
    """Of a board with several fans the fastest; all None where there is none."""
    text = text_of(root / _CONF) or ""
    default = _DEFAULT.search(text)
    hwmons = list((root / "sys/class/hwmon").glob("hwmon*"))
    pwms = [number_in(hwmon / "pwm1") for hwmon in hwmons if (text_of(hwmon / "name") or "").strip() == "pwmfan"]
    rpms = [number_in(hwmon / "rpm") for hwmon in hwmons]
    pwm = max((value for value in pwms if value is not None), default=None)
    return Fan(
        profile=None if default is None else default[2],
        profiles=tuple(dict.fromkeys(_PROFILE.findall(text))),
        power_share=None if pwm is None else pwm / _FULL_PWM,
        rpm=max((value for value in rpms if value is not None), default=None),
    )


def set_fan(root: Path, wanted: str) -> None:
    """A profile by its name, for good; ``max``: full speed until the next reboot. Raises UsageError."""
    fan = read_fan(root)
    if wanted != FULL_SPEED and wanted not in fan.profiles:
        known = ", ".join([*fan.profiles, FULL_SPEED])
        raise UsageError(f"no fan profile {wanted!r} on this board", remedy=f"use one of: {known}")
    refuse_other_users("setting the fan")
    if wanted == FULL_SPEED:
        run_tool(["jetson_clocks", "--fan"])
        return
    conf = (root / _CONF).resolve()  # a link to the board's own file, which must stay one
    changed = _DEFAULT.sub(rf"\g<1>{wanted}", conf.read_text(encoding="utf-8"))
    mode = conf.stat().st_mode
    run_tool(["systemctl", "stop", "nvfancontrol"])
    try:
        write_bytes(conf, changed.encode())
        conf.chmod(mode)
        (root / _STATUS).unlink(missing_ok=True)
    finally:
        run_tool(["systemctl", "start", "nvfancontrol"])  # or nobody turns the fan
