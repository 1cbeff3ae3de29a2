"""The line stays lean: no training stack, no wall clocks, one public surface, imports in one direction."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rdedge

PROJECT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "scipy", "sklearn", "tqdm")
MODULES = ["rdedge", *(module.name for module in pkgutil.walk_packages(rdedge.__path__, "rdedge."))]

IMPORT_WITHOUT = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"{{name}} is not for the line", name=name)
sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_list_of_modules_is_whole() -> None:
    files = {path for path in (PROJECT / "runtime" / "rdedge").rglob("*.py")}
    assert len(MODULES) == len(files) > 25


def test_every_module_of_the_line_imports_without_the_training_stack() -> None:
    names = [name for name in MODULES if name != "rdedge.__main__"]
    done = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT, *names], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_rdedge_loads_none_of_it() -> None:
    code = f"import sys, rdedge; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_public_surface_is_sorted_and_complete() -> None:
    assert rdedge.__all__ == sorted(rdedge.__all__)
    modules = {name.partition(".")[2].partition(".")[0] for name in MODULES} - set(rdedge.__all__)
    public = {name for name in vars(rdedge) if not name.startswith("_")} - modules
    assert public == set(rdedge.__all__)
    assert callable(rdedge.preprocess), "the function, not the module of its name"


def test_what_is_public_says_what_it_is() -> None:
    undocumented = [name for name in rdedge.__all__ if not (getattr(rdedge, name).__doc__ or "").strip()]
    assert undocumented == []


def test_imports_go_in_one_direction() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PROJECT, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((PROJECT / "runtime").rglob("*.py")), ids=lambda path: path.stem)
def test_the_line_knows_no_wall_clock_and_no_pickle(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\btime\.time\(|\bfrom time import time\b|\bimport pickle\b|allow_pickle=True", text)


@pytest.mark.parametrize("path", sorted((PROJECT / "runtime").rglob("*.py")), ids=lambda path: path.stem)
def test_a_module_says_what_it_is_for_and_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('"""') and len(lines) <= 300
