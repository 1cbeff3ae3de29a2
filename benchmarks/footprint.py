"""What a line's computer must hold: size of a venv with only base and [cpu] and what in it is large, import time, peak
memory of a run."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from rdedge.bench.cold import run_cold
from results_file import write_results

ROOT = Path(__file__).parent.parent
LARGEST = 8


def main() -> None:
    """Build the venv, run the bundle in it, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", type=Path, help="frames to run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        venv = Path(work) / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        python = venv / "bin" / "python"
        install = ["-m", "pip", "--python", str(python), "install", "--quiet", f"{ROOT}[cpu]"]
        subprocess.run([sys.executable, *install], check=True)
        subprocess.run([str(python), "-m", "compileall", "-q", str(venv / "lib")], check=False)
        size_mb, (site,) = tree_mb(venv), venv.glob("lib/python*/site-packages")
        packages_mb = sizes_mb(site)
        has_torch = (
            subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode == 0
        )
        import_ms = [_seconds([str(python), "-c", "import rdedge"]) * 1e3 for _ in range(11)]
        bare_ms = [_seconds([str(python), "-c", "pass"]) * 1e3 for _ in range(11)]
        _, peak_mb = run_cold(python, ["run", str(args.bundle), "--source", str(args.source)])
    largest = sorted(packages_mb.items(), key=lambda item: -item[1])[:LARGEST]
    rest_mb = size_mb - sum(mb for _, mb in largest)
    table = "\n".join(
        [
            "| what | figure |",
            "|---|---|",
            f"| venv with base and [cpu], byte-compiled, without pip | {size_mb:.0f} MB |",
            *(f"| of it {name} | {mb:.1f} MB |" for name, mb in largest),
            f"| of it all else | {rest_mb:.1f} MB |",
            f"| torch in it | {'yes' if has_torch else 'no'} |",
            f"| `python -c 'import rdedge'`, whole process, median of 11 | {np.median(import_ms):.0f} ms |",
            f"| `python -c pass`, the same | {np.median(bare_ms):.0f} ms |",
            f"| peak resident memory of `rdedge run` on {args.source.name} | {peak_mb:.0f} MB |",
        ]
    )
    figures: dict[str, object] = {
        "venv_mb": size_mb,
        "packages_mb": packages_mb,
        "import_ms": import_ms,
        "bare_ms": bare_ms,
        "peak_mb": peak_mb,
    }
    write_results("footprint", table, figures, ("onnxruntime",))


def sizes_mb(site: Path) -> dict[str, float]:
    """By package: all that lies below the names it put into site-packages, byte-compiled files included.

    A name that several packages share counts for the first of them, in alphabetical order.
    """
    sizes: dict[str, float] = {}
    counted: set[str] = set()
    for package in sorted(distributions(path=[str(site)]), key=lambda each: each.name):
        names = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"} - counted
        sizes[package.name] = sum(tree_mb(site / name) for name in names)
        counted |= names
    return sizes


def tree_mb(path: Path) -> float:
    """Of a file or a folder, in 10^6 bytes; links count nothing."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
