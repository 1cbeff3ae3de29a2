"""RDEDGE_NO_SKIPS=1: a session that skipped what it could have run has failed, and says which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"
CASES = {
    "all run": ("def test_it(): pass", []),
    "skipped by a call": ("import pytest\ndef test_it(): pytest.skip('no data')", ["test_case.py::test_it"]),
    "skipped by a mark": ("import pytest\n@pytest.mark.skip\ndef test_it(): pass", ["test_case.py::test_it"]),
    "skipped in a fixture": (
        "import pytest\n@pytest.fixture\ndef data(): pytest.skip('no data')\ndef test_it(data): pass",
        ["test_case.py::test_it"],
    ),
    "module skipped": ("import pytest\npytest.importorskip('no_such_module_of_ours')", ["test_case.py"]),
    "needs a GPU": ("import pytest\n@pytest.mark.gpu\ndef test_it(): pytest.skip('no GPU')", []),
    "needs a Jetson": ("import pytest\n@pytest.mark.jetson\ndef test_it(): pytest.skip('no board')", []),
    "needs root": (
        "import pytest\n@pytest.mark.mounts\ndef test_it(): pytest.skip('no mounts')",
        ["test_case.py::test_it"] if os.geteuid() == 0 else [],
    ),
    "expected to fail": ("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False", []),
}


def run_pytest(folder: Path, setting: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_case.py", "test_other.py"],
        cwd=folder,
        env=os.environ | {"RDEDGE_NO_SKIPS": setting},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("kind", CASES)
def test_skips_fail_the_session(tmp_path: Path, kind: str) -> None:
    code, blamed = CASES[kind]
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu\n  jetson\n  mounts\n")
    (tmp_path / "test_case.py").write_text(f"{code}\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    done = run_pytest(tmp_path, "1")
    assert done.returncode == (1 if blamed else 0), done.stdout
    heading = "RDEDGE_NO_SKIPS: these may not be skipped"
    assert (heading in done.stdout) is bool(blamed)
    for name in blamed:
        assert name in done.stdout.partition(heading)[2].splitlines()
    if blamed:
        assert run_pytest(tmp_path, "0").returncode == 0
