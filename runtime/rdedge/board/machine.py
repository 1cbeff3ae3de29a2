"""The machine itself: its processor, whether it is a Jetson and which, its small files and its tools."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from rdedge.errors import UsageError

_TOOL_TIMEOUT_S = 60
# What kernels for INT8 and 16-bit numbers are chosen by, as /proc/cpuinfo names it on x86 and on Arm.
_ON_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ON_ARM = ("asimddp", "i8mm", "bf16", "sve")


def is_jetson(root: Path) -> bool:
    """JetPack puts its release file on every Jetson, from the Nano to Thor."""
    return (root / "etc/nv_tegra_release").is_file()


def model_of(root: Path) -> str:
    """The device tree's name of the board, "" where there is none."""
    return (text_of(root / "proc/device-tree/model") or "").rstrip("\0").strip()


def processor_name(root: Path = Path("/")) -> str:
    """Model of the processor, or of the board where it has no name, and those instructions that engines choose by."""
    rows = (text_of(root / "proc/cpuinfo") or "").splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    model = facts.get("model name") or model_of(root) or platform.processor() or platform.machine()
    has = set(facts.get("flags", facts.get("Features", "")).split())
    instructions = [name for name in (*_ON_X86, *_ON_ARM) if name in has]
    return f"{model} ({', '.join(instructions)})" if instructions else model


def refuse_other_boards(root: Path) -> None:
    """Raises UsageError."""
    if not is_jetson(root):
        raise UsageError(
            "this machine is no Jetson: /etc/nv_tegra_release is missing",
            remedy="run this on the board; in a container, mount that file",
        )


def refuse_other_users(what: str) -> None:
    """Raises UsageError for anyone but root."""
    if os.geteuid() != 0:
        raise UsageError(f"{what} needs root", remedy='run it as `sudo "$(command -v rdedge)" power ...`')


def text_of(path: Path) -> str | None:
    """What a file holds, None where it cannot be read: sensors of a sleeping part of the chip answer EAGAIN."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def number_in(path: Path) -> int | None:
    """The whole number a file holds; None where there is none."""
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None


def answer_of(command: list[str]) -> str:
    """What a tool prints on stdout, whatever its exit code; "" where it is absent or stuck."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run_tool(command: list[str], *, answer: str = "") -> str:
    """Runs a tool with ``answer`` on its stdin; returns all it printed. Raises UsageError where it fails."""
    called = " ".join(command)
    try:
        done = subprocess.run(
            command,
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
        )
    except FileNotFoundError as exc:
        raise UsageError(
            f"{command[0]} is not installed", remedy="apt install nvidia-l4t-tools nvidia-l4t-nvpmodel"
        ) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UsageError(f"`{called}` cannot be run ({exc})", remedy="run it by hand") from exc
    if done.returncode != 0 and "Reboot required" not in done.stdout:
        lines = done.stdout.strip().splitlines()
        raise UsageError(
            f"`{called}` failed with {done.returncode}: {lines[-1] if lines else 'it says nothing'}",
            remedy="run it by hand",
        )
    return done.stdout
