"""A verb of rdedge in this process, whose failure ends the benchmark."""

from __future__ import annotations

from rdedge.cli import main


def run_rdedge(*arguments: object) -> None:
    """``rdedge`` with these arguments. Raises SystemExit where it fails, after its own message."""
    command = [str(argument) for argument in arguments]
    if main(command) != 0:
        raise SystemExit(f"rdedge {' '.join(command)} failed")
