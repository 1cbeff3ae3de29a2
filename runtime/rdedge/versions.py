"""Versions of rdedge and of the libraries that made a run, a bundle or a measurement."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of Python, rdedge, numpy and the packages named; "not installed" of one that is not there."""
    return {"python": platform.python_version()} | {p: _version(p) for p in ("rdedge", "numpy", *packages)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the module comes from a package of another name, such as onnxruntime-gpu
        try:
            return str(getattr(import_module(package), "__version__", "unknown"))
        except ImportError:
            return "not installed"
