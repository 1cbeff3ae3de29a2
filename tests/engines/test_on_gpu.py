"""The self-test on a real GPU, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdedge.cli import main
from rdedge.doctor_verb import examine, usable_backends


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_the_selftest_passes(backend: str, engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if backend not in usable_backends(examine(Path("/"))):
        pytest.skip(f"needs a GPU with {backend}")
    assert main(["selftest", str(engine_bundle), "--backend", backend, "--seconds", "5"]) == 0, capsys.readouterr().out
