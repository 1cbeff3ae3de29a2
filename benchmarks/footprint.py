"""What a line's computer must hold: size of a venv with only base and [cpu], import time, peak memory of a run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from results_file import write_results

ROOT = Path(__file__).parent.parent


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
        size_mb = sum(f.stat().st_size for f in venv.rglob("*") if f.is_file() and not f.is_symlink()) / 1e6
        has_torch = (
            subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode == 0
        )
        import_ms = [_seconds([str(python), "-c", "import rdedge"]) * 1e3 for _ in range(11)]
        bare_ms = [_seconds([str(python), "-c", "pass"]) * 1e3 for _ in range(11)]
        peak_mb = _peak_mb([str(python), "-m", "rdedge", "run", str(args.bundle), "--source", str(args.source)])
    table = "\n".join(
        [
            "| what | figure |",
            "|---|---|",
            f"| venv with base and [cpu], byte-compiled, without pip | {size_mb:.0f} MB |",
            f"| torch in it | {'yes' if has_torch else 'no'} |",
            f"| `python -c 'import rdedge'`, whole process, median of 11 | {np.median(import_ms):.0f} ms |",
            f"| `python -c pass`, the same | {np.median(bare_ms):.0f} ms |",
            f"| peak resident memory of `rdedge run` on {args.source.name} | {peak_mb:.0f} MB |",
        ]
    )
    figures: dict[str, object] = {"venv_mb": size_mb, "import_ms": import_ms, "bare_ms": bare_ms, "peak_mb": peak_mb}
    write_results("footprint", table, figures, ("onnxruntime",))


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def _peak_mb(command: list[str]) -> float:
    """Peak resident memory of one child, from the kernel's account of it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
