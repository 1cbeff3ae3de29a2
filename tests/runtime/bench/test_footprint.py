"""Sizes by package, and a peak that is the child's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from footprint import sizes_mb
from rdedge.bench.cold import run_cold
from rdedge.bench.memory import peak_memory_mb
from rdedge.errors import BackendError


def test_a_packages_size_is_all_below_its_names(tmp_path: Path) -> None:
    for name, size in {
        "big/data.bin": 3_000_000,
        "big/__pycache__/data.pyc": 500_000,  # not in the record: made after the installation
        "big.libs/libbig.so": 1_000_000,
        "small.py": 2000,
        "nobody's/file": 700_000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "big" / "link").symlink_to(tmp_path / "big" / "data.bin")
    for package, files in {"big": ["big/data.bin", "big.libs/libbig.so"], "small": ["small.py", "../bin/s"]}.items():
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        record = [*files, f"{info.name}/METADATA", f"{info.name}/RECORD"]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in record))
    sizes = sizes_mb(tmp_path)
    assert set(sizes) == {"big", "small"}
    assert sizes["big"] == pytest.approx(4.5, abs=1e-3) and sizes["small"] == pytest.approx(0.002, abs=1e-3)


def test_a_childs_peak_is_its_own_and_of_its_whole_run(
    bundle: Path, parts: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    held = np.ones(300_000_000, np.uint8)
    first_ms, peak_mb = run_cold(sys.executable, ["run", str(bundle), "--source", str(parts)])
    assert first_ms > 0 and peak_mb < peak_memory_mb() - 50, "the parent holds 300 MB more than its libraries"
    code = "import cv2, onnxruntime; from rdedge.bench.memory import peak_memory_mb; print(peak_memory_mb())"
    libraries_mb = float(run_python(code).stdout)
    assert peak_mb > libraries_mb, "of the whole run, not of its begin"
    del held


def test_a_run_that_fails_has_no_peak(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"`rdedge run .*missing` ended with 2 \(rdedge: error: .*missing"):
        run_cold(sys.executable, ["run", str(bundle), "--source", str(tmp_path / "missing")])
