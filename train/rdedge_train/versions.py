"""Versions of rdedge and of the libraries that made a run or a bundle."""

from __future__ import annotations

import platform
from importlib.metadata import version


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of rdedge, Python, numpy and the packages named."""
    return {"python": platform.python_version()} | {p: version(p) for p in ("rdedge", "numpy", *packages)}
