"""Dated result files: what was measured, on what, by which command."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from rdedge.bench.machine import machine
from rdedge.versions import library_versions

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit measured, or nothing outside a checkout."""
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


@cache
def today() -> str:
    """As results are dated, in UTC: all of one measurement alike, also over midnight."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


def write_results(theme: str, table: str, figures: dict[str, object], packages: tuple[str, ...]) -> Path:
    """``results/<date>_<theme>.md`` and ``.json``; prints the table; returns the path of the former."""
    day = today()
    command = "python " + " ".join(sys.argv)
    hardware = machine()
    facts = {"date": day, "command": command, "commit": commit(), "machine": hardware}
    versions = library_versions(*packages)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{day}_{theme}"
    whole = facts | {"versions": versions, "figures": figures}
    stem.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# {theme.replace('_', ' ')}, {day}",
        "",
        f"`{command}` on {hardware['processor']}, {hardware['cores']} cores, {hardware['system']}; "
        + ", ".join(f"{k} {v}" for k, v in versions.items()),
        "",
        table,
        "",
    ]
    path = stem.with_suffix(".md")
    path.write_text("\n".join(lines), encoding="utf-8")
    print(table)
    print(f"\nwritten to {path}")
    return path
