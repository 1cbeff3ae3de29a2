"""Virtual environments of the subjects: made by pip alone, with their size and what importing costs in them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
_OF_CUDA = ("nvidia", "triton", "cusparselt", "nvshmem")  # packages that a build of torch without CUDA does not need


@dataclass(frozen=True, slots=True)
class Environment:
    """``size_mb``: byte-compiled, without pip; ``less_cuda_mb``: without what only a GPU needs.

    ``import_s``: of a whole process that imports and ends.
    """

    python: Path
    size_mb: float
    less_cuda_mb: float
    import_s: float


def make_environment(
    folder: Path, packages: Sequence[str], more: Sequence[str], statement: str, imports: int = 5
) -> Environment:
    """Installs ``packages``, measures, then installs ``more``, which the comparison needs and the line does not.

    ``statement``: imports what the line's program imports, timed ``imports`` times. An environment that was made
    before is used as it is, but for our own package, which is that of this tree.
    """
    folder = folder.absolute()  # subjects run in folders of their own
    python, noted = folder / "bin" / "python", folder / "size_mb"
    if not noted.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], check=True)
        _install(python, packages)
        subprocess.run([str(python), "-m", "compileall", "-q", str(folder / "lib")], check=False)
        sizes = _size_mb(folder), _size_mb(folder, without_cuda=True)
        if more:
            _install(python, more)
        noted.write_text(" ".join(map(str, sizes)), encoding="utf-8")  # last: what has it is whole
    elif any(package.startswith(str(ROOT)) for package in packages):
        _install(python, ["--no-deps", "--force-reinstall", str(ROOT)])
    size_mb, less_cuda_mb = map(float, noted.read_text(encoding="utf-8").split())
    return Environment(python, size_mb, less_cuda_mb, _import_s(python, statement, imports))


def _install(python: Path, packages: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *packages], check=True)


def _size_mb(folder: Path, *, without_cuda: bool = False) -> float:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if not (without_cuda and _is_of_cuda(path, folder))) / 1e6


def _is_of_cuda(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith(_OF_CUDA) for part in parts) or "cuda" in path.name.lower()


def _import_s(python: Path, statement: str, imports: int) -> float:
    """Median seconds of a few processes, the first of which fills the disk cache and does not count."""
    seconds = []
    for _ in range(1 + imports):
        started = time.perf_counter()
        subprocess.run([str(python), "-c", statement], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))
