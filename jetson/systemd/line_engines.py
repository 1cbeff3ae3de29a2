"""Builds the engines that a line's file asks for and this board does not have yet; for rdedge-engine@.service."""

from __future__ import annotations

import sys
from pathlib import Path

from rdedge.backends import engine_arguments
from rdedge.cli import EXIT_ERROR, main
from rdedge.errors import UsageError
from rdedge.line.checked import Problems
from rdedge.line.config import LineConfig, read_config, refusal


def commands(path: Path, config: LineConfig) -> list[list[str]]:
    """Arguments of `rdedge`, once a bundle; none where the line needs no engine. Relative paths begin at the file."""
    names = dict.fromkeys(config.bundle_of(camera) for camera in config.camera)
    wanted = (engine_arguments(path.parent / name, config.backend, config.precision) for name in names)
    return [arguments for arguments in wanted if arguments is not None]


def build(path: Path) -> int:
    """The exit code of the first command that fails, else 0."""
    try:
        config = read_config(path)
    except Problems as exc:
        faults = [*exc.problems, f"error: {refusal(path, exc)}"]
        print(*(f"rdedge: {text}" for text in faults), sep="\n", file=sys.stderr)
        return EXIT_ERROR
    return next((code for command in commands(path, config) if (code := main(command)) != 0), 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(UsageError("one argument is expected", remedy="name a line's file")))
    sys.exit(build(Path(sys.argv[1])))
