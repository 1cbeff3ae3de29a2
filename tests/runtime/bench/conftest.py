"""A board's `tegrastats` where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest


@pytest.fixture
def play_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Path]:
    """Puts a `tegrastats` on the path that plays recorded lines again and again; the file gets its process number."""

    def put(lines: list[str]) -> Path:
        folder = tmp_path / "nvidia"
        folder.mkdir()
        program = folder / "tegrastats"
        program.write_text(
            "#!/bin/sh\n"
            f"echo $$ > {quote(str(folder / 'pid'))}\n"
            'test "$1 $2" = "--interval 100" || exit 1\n'
            "while true; do\n"
            + "".join(f"    printf '%s\\n' {quote(line)}\n    sleep 0.1 > /dev/null\n" for line in lines)
            + "done\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder / "pid"

    return put
