"""``rdedge power``: a Jetson's power mode, clocks, fan and heat, shown and set."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from rdedge.board.clocks import are_fixed, fix_clocks, read_clocks
from rdedge.board.fan import FULL_SPEED, read_fan, set_fan
from rdedge.board.machine import model_of, refuse_other_boards
from rdedge.board.nvpmodel import current_mode, mode_named, read_modes, set_mode
from rdedge.board.thermal import Heat, read_heat
from rdedge.errors import UsageError
from rdedge.text import printable

_REMEDY_HEAT = "clean or turn up the fan (--fan), or use a mode of less power"
_REMEDY_CURRENT = "check the power supply, or use a mode of less power"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("--mode", metavar="NAME", help="put this power mode in force, for good; as root")
    parser.add_argument("--reboot", action="store_true", help="with --mode: reboot at once, if the mode takes a reboot")
    parser.add_argument(
        "--max-clocks", action="store_true", help="fix all clocks at the mode's highest until the next reboot; as root"
    )
    parser.add_argument(
        "--fan", metavar="PROFILE", help=f"fan profile, for good, or {FULL_SPEED} until the next reboot; as root"
    )
    parser.add_argument("--json", action="store_true", help="print what is shown as JSON")


def execute(args: argparse.Namespace, root: Path = Path("/")) -> int:
    """Sets what is asked for, then shows all. Raises UsageError on other machines, and for what cannot be set."""
    refuse_other_boards(root)
    if args.reboot and args.mode is None:
        raise UsageError("--reboot without --mode", remedy="name the mode that takes the reboot")
    said = list(_set(args, root))
    if args.json:
        print(json.dumps(state_of(root), indent=2))
        return 0
    for line in [*said, *rows(root)]:
        print(printable(line))
    return 0


def _set(args: argparse.Namespace, root: Path) -> Iterator[str]:
    """What was done, a line each. The mode comes first: it decides how far clocks go."""
    if args.mode is not None:
        name = mode_named(args.mode, read_modes(root)).name
        done = set_mode(root, name, may_reboot=args.reboot)
        yield {
            "kept": f"already in power mode {name}",
            "set": f"power mode {name} is in force, also after a reboot",
            "rebooting": f"the board reboots into {name}",
        }[done]
        if done == "rebooting":
            return
    if args.max_clocks:
        fix_clocks()
        yield "clocks are fixed until the next reboot"
    if args.fan is not None:
        set_fan(root, args.fan)
        yield "fan at full speed until the next reboot" if args.fan == FULL_SPEED else f"fan profile {args.fan}"


def rows(root: Path) -> Iterator[str]:
    """The board as a table in words."""
    modes = read_modes(root)
    current, clocks, heat = current_mode(root, modes), read_clocks(root), read_heat(root)
    yield f"board        {model_of(root) or 'a Jetson that does not say which'}"
    yield f"power mode   {current or 'nvpmodel does not say'}"
    for mode in modes:
        yield f"  {'*' if mode.name == current else ' '} {mode.name:<12} {mode}"
    fixed = "fixed" if are_fixed(clocks) else "may fall between parts: --max-clocks fixes them"
    yield f"clocks       {fixed}"
    yield from (f"    {clock}" for clock in clocks)
    yield f"fan          {read_fan(root)}"
    temperatures = ", ".join(f"{zone} {celsius:.0f}" for zone, celsius in heat.temperatures_c.items())
    yield f"temperature  {f'{temperatures} °C' if temperatures else 'no sensor can be read'}"
    yield f"heat         {_told_of_heat(heat)}"
    yield f"current      {_told_of_current(heat)}"


def _told_of_heat(heat: Heat) -> str:
    if heat.throttled:
        return f"slows down {', '.join(heat.throttled)}: {_REMEDY_HEAT}"
    return "slows nothing down" if heat.alerts else "the board does not say what it slows down"


def _told_of_current(heat: Heat) -> str:
    counts = ", ".join(f"{count} x {kind}" for kind, count in heat.over_currents.items() if count)
    if counts:
        return f"{counts} since boot: {_REMEDY_CURRENT}"
    return "never too high since boot" if heat.over_currents else "the board does not count"


def state_of(root: Path) -> dict[str, object]:
    """The same as JSON values. Raises UsageError where there is no /etc/nvpmodel.conf."""
    modes = read_modes(root)
    return {
        "board": model_of(root),
        "mode": current_mode(root, modes),
        "modes": [
            {
                "name": mode.name,
                "number": mode.number,
                "cores": mode.cores,
                **{f"{what.lower()}_mhz": mode.top_mhz(what) for what in ("CPU", "GPU", "EMC")},
            }
            for mode in modes
        ],
        "clocks": [dataclasses.asdict(clock) | {"is_fixed": clock.is_fixed} for clock in read_clocks(root)],
        "fan": dataclasses.asdict(read_fan(root)),
        "heat": dataclasses.asdict(read_heat(root)),
    }
