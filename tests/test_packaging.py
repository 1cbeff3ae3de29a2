"""What is shipped: the wheel's files, its dependencies, and the version everywhere the same."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"rdedge": "runtime", "rdedge_train": "train", "rdedge_export": "export"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*command, str(ROOT)], check=True)
    return zipfile.ZipFile(next(out.glob("rdedge-*.whl")))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent.name == "static"
    }
    assert shipped == expected


def test_the_line_needs_little(wheel: zipfile.ZipFile) -> None:
    metadata_name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(metadata_name).decode())
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    always = [line for line in base if "python_version" not in line]
    assert sorted(re.split(r"[<>=~ ]", line)[0] for line in always) == ["msgspec", "numpy", "opencv-python-headless"]
    assert [re.split(r"[<>=~ ]", line)[0] for line in base if line not in always] == ["tomli"]  # 3.11 has its own
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)
    assert first is not None and first.group(1) == version("rdedge")


def test_every_module_says_first_what_it_is_for() -> None:
    for folder in ("runtime", "train", "export", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.removeprefix("#!/usr/bin/env python3\n").startswith('"""'), path
