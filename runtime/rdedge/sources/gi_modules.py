"""GStreamer and Aravis by PyGObject: imported when a camera needs them, with the line that installs what is missing."""

from __future__ import annotations

import importlib
from typing import Any

from rdedge.errors import MissingExtraError

_PACKAGES = {
    "Aravis": "gir1.2-aravis-0.8",
    "Gst": "gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good",
}


def load_gi(module: str, version: str) -> Any:
    """``gi.repository.<module>``. Raises MissingExtraError."""
    try:
        gi = importlib.import_module("gi")
    except ImportError as exc:
        raise MissingExtraError(
            f"this camera needs PyGObject ({exc})",
            remedy="apt install libgirepository1.0-dev libcairo2-dev gcc pkg-config python3-dev "
            f"{_PACKAGES[module]} && pip install 'rdedge[gobject]'",
        ) from exc
    try:
        gi.require_version(module, version)
        return importlib.import_module(f"gi.repository.{module}")
    except (ValueError, ImportError) as exc:
        raise MissingExtraError(
            f"this camera needs {module} {version}", remedy=f"apt install {_PACKAGES[module]}"
        ) from exc
