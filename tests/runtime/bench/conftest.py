"""A board's `tegrastats` where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def play_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Path]:
    """Puts a `tegrastats` on the path that plays recorded lines again and again; the file gets its process number."""

    def put(lines: list[str]) -> Path:
        folder = tmp_path / "nvidia"
        folder.mkdir()
        program = folder / "tegrastats"
        program.write_text(
            f"#!{sys.executable}\n"
            "import itertools, os, sys, time\n"
            f"open({str(folder / 'pid')!r}, 'w').write(str(os.getpid()))\n"
            "assert sys.argv[1] == '--interval', sys.argv\n"
            f"for line in itertools.cycle({lines!r}):\n"
            "    print(line, flush=True)\n"
            "    time.sleep(int(sys.argv[2]) / 1e3)\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder / "pid"

    return put
