"""Versions of rdedge and of the libraries that made a run or a bundle."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of rdedge, Python, numpy and the packages named."""
    return {"python": platform.python_version()} | {p: _version(p) for p in ("rdedge", "numpy", *packages)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the module comes from a package of another name, such as onnxruntime-gpu
        return str(getattr(import_module(package), "__version__", "unknown"))
