"""Two processes that build engines of one bundle at once: one builds, the other waits and takes what was built."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rdedge.backends import open_backend
from rdedge.bundle import open_bundle

BUILD = """
import sys, time
from pathlib import Path
from fake_tensorrt import make_module
from rdedge.cli import main
trt = sys.modules["tensorrt"] = make_module("10.3.0")
begun, go_on = Path(sys.argv[2]), Path(sys.argv[3])
def hold():
    begun.open("a").write("x")
    while not go_on.exists():
        time.sleep(0.01)
trt.fake.build_hook = hold
sys.exit(main(["engine", sys.argv[1], "--precision", sys.argv[4]]))
"""


def start(bundle: Path, folder: Path, precision: str) -> subprocess.Popen[str]:
    paths = [str(Path(os.environ["RDEDGE_STANDIN"]) / "site"), str(Path(__file__).parents[1]), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    environment.pop("NULLCUDA_REPORT", None)
    command = [sys.executable, "-c", BUILD, str(bundle), str(folder / "begun"), str(folder / "go on"), precision]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("precisions", [("fp32", "fp32"), ("fp32", "fp16")], ids="-".join)
def test_builds_at_once_come_one_after_the_other(
    install_tensorrt: Any, engine_bundle: Path, tmp_path: Path, precisions: tuple[str, str]
) -> None:
    with start(engine_bundle, tmp_path, precisions[0]) as first:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        with start(engine_bundle, tmp_path, precisions[1]) as second:
            assert second.stderr is not None
            try:
                waits = "another process is building or measuring engines of this bundle: waiting for it"
                assert any(waits in line for line in second.stderr)
                assert (tmp_path / "begun").read_text() == "x", "two builders would compete for the GPU's memory"
            finally:
                (tmp_path / "go on").touch()
            texts = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], texts
    is_same = precisions[0] == precisions[1]
    assert texts[0][0].startswith("built ") and texts[1][0].startswith("kept " if is_same else "built ")
    assert (tmp_path / "begun").read_text() == ("x" if is_same else "xx")
    install_tensorrt("10.3.0")
    for precision in precisions:
        open_backend(open_bundle(engine_bundle), backend="tensorrt", precision=precision).close()  # type: ignore
