"""A board that boots: what install.sh made, under systemd in an emulated machine without network, through faults.

Needs root, debootstrap, qemu-system-x86 and e2fsprogs, and for the pretended CUDA driver gcc, g++ and make. The Debian
is kept in ``--work`` and used again. A machine without KVM will do: nothing here measures speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from booted import checks, faults
from booted.guest import Guest
from booted.line import Failed, Line
from booted.root import make_disks
from dressed_board import build_driver, gather_wheels
from rdedge.bundle import open_bundle
from rdedge.errors import RdedgeError, UsageError
from rdedge_train.sample import SamplePlan, make_sample
from results_file import write_results
from run_rdedge import run_rdedge

Check = Callable[[Line], str]
# In this order: each finds the board as the one before left it.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("install.sh again, on the booted board", checks.installs_again),
    ("devices and limits are as its rules say", checks.devices_are_rdedges),
    ("line put up by the guide's steps", checks.line_is_put_up),
    ("runs after a restart, without network and camera", checks.runs_after_restart),
    ("camera plugged in after the start", checks.camera_plugged_in_later),
    ("engine build ran before it", checks.engine_ran_first),
    ("systemd has nothing to say against the units", checks.nothing_is_wrong),
    ("verdicts from the kernel's camera", checks.verdicts_come),
    ("user, capabilities, system calls", checks.walls_stand),
    ("memory cap is in force", checks.memory_is_capped),
    ("log in a journal of its own", checks.log_is_its_own),
    ("exposure of the loaded units", checks.exposure_is_as_stated),
    ("devices outside the list are refused", checks.other_devices_are_refused),
    ("file system is read-only but for its data", checks.files_are_read_only),
    ("the camera daemon's socket is reached", checks.camera_daemon_is_reached),
    ("operator page and health", checks.page_and_health_answer),
    ("heartbeat on a pin", checks.heartbeat_beats),
    ("reload takes over a threshold", checks.reload_takes_a_threshold),
    ("a pulse for each reject", checks.rejects_are_pulsed),
    ("a pulse for each good part, after a reload", checks.good_parts_are_pulsed),
    ("hung line (SIGSTOP)", faults.hung_line_is_restarted),
    ("killed line (SIGKILL)", faults.killed_line_is_restarted),
    ("camera unplugged and back", faults.unplugged_camera_is_told_once),
    ("full disk", faults.full_disk_is_got_over),
    ("power cut while writing", faults.power_cut_is_got_over),
    ("stop", faults.stops_cleanly),
    ("uninstall while it runs, and purge", faults.uninstalls),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one check: what was seen, or what was expected and not found."""

    name: str
    passed: bool
    seen: str
    seconds: float


def main() -> None:
    """Disks, board, checks, results; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "rdedge-booted", help="(%(default)s)")
    args = parser.parse_args()
    try:
        _require("debootstrap", "qemu-system-x86_64", "mke2fs", "unshare")
        disks = make_disks(args.work, _wheels(args.work), build_driver(), _bundle(args.work))
        with Guest(disks, args.work) as board:
            system = board.run("uname -v; systemctl --version | head -n 1; python3 --version").output.splitlines()
            outcomes = run_checks(Line(board), CHECKS)
    except RdedgeError as exc:
        sys.exit(f"booted_board: {exc}")
    figures: dict[str, object] = {"system": system, "checks": [asdict(outcome) for outcome in outcomes]}
    write_results("booted_board", render(system, outcomes), figures, ("numpy", "onnxruntime"))
    sys.exit(0 if outcomes and all(outcome.passed for outcome in outcomes) else 1)


def run_checks(line: Line, checks: Sequence[tuple[str, Check]]) -> list[Outcome]:
    """Each told as it ends. One that fails stops none that follow; a board that no longer answers ends all."""
    outcomes: list[Outcome] = []
    for name, check in checks:
        started_s = time.monotonic()
        is_there = True
        try:
            passed, seen = True, check(line)
        except Failed as exc:
            passed, seen = False, str(exc)
        except RdedgeError as exc:
            passed, seen, is_there = False, str(exc), False
        outcomes.append(Outcome(name=name, passed=passed, seen=seen, seconds=time.monotonic() - started_s))
        print(f"{'pass' if passed else 'FAIL'}  {name}: {seen}", flush=True)
        if not is_there:
            break
    return outcomes


def render(system: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The results as a table."""
    passed = sum(outcome.passed for outcome in outcomes)
    rows = [
        f"{passed} of {len(outcomes)} checks passed. Debian 12 on an emulated x86 machine without network card (QEMU",
        "without KVM; 2 processors, 3 GB), dressed as JetPack 6.2, CUDA driver and TensorRT pretended; camera: the",
        f"kernel's vivid; pins: its gpio-sim; /var/lib/rdedge on a small disk of its own. {', '.join(system)}.",
        "Emulation is slow: the seconds say nothing of a board.",
        "",
        "| check | | seen |",
        "|---|---|---|",
    ]
    for outcome in outcomes:
        seen = " ".join(outcome.seen.split()).replace("|", "\\|")
        rows.append(f"| {outcome.name} | {'pass' if outcome.passed else '**fail**'} | {seen} |")
    return "\n".join(rows)


def _require(*tools: str) -> None:
    """Raises UsageError."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not found", remedy="apt-get install debootstrap qemu-system-x86 e2fsprogs util-linux"
        )
    if os.geteuid() != 0:
        raise UsageError("a Debian root is made and entered", remedy="run this as root, best in a container")


def _wheels(work: Path) -> Path:
    """Anew each time: they hold the package as it is now."""
    wheels, scratch = work / "wheels", work / "wheels-venv"
    for folder in (wheels, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    gather_wheels(wheels, build_driver(), scratch)
    return wheels


def _bundle(work: Path) -> Path:
    """A small one: what it thinks of a picture does not matter here. Kept while it can be read."""
    bundle, run, parts = work / "bundle", work / "run", work / "parts"
    plan = SamplePlan(train_good=24, test_good=1, test_per_defect=1, video_frames=1, size_hw=(180, 320))
    if not parts.exists():
        make_sample(parts, plan)
    commands = (
        ["train", str(parts), "--out", str(run), "--epochs", "1", "--image-size", "32"],
        ["export", str(run), "--out", str(bundle)],
    )
    try:
        open_bundle(bundle)
        return bundle
    except RdedgeError:  # none yet, or of another schema
        for folder in (bundle, run):
            shutil.rmtree(folder, ignore_errors=True)
    for command in commands:
        run_rdedge(*command)
    return bundle


if __name__ == "__main__":
    main()
