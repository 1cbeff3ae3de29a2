"""TensorRT and TensorRT-RTX as Python modules: found, named, and their complaints collected."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from rdedge.engines import Flavour
from rdedge.errors import MissingExtraError

_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_REMEDIES: dict[Flavour, str] = {
    "tensorrt": "pip install 'rdedge[tensorrt]'; on a Jetson it comes with JetPack (`apt install python3-libnvinfer`)"
    " and a virtual environment sees it if made with --system-site-packages",
    "tensorrt-rtx": "pip install 'rdedge[rtx]'",
}


def load_tensorrt(flavour: Flavour) -> Any:
    """The library's module. Raises MissingExtraError."""
    try:
        return importlib.import_module(_MODULES[flavour])
    except ImportError as exc:  # absent, or a library it needs is
        raise MissingExtraError(f"{flavour} cannot be loaded ({exc})", remedy=_REMEDIES[flavour]) from exc


def version_of(trt: Any) -> str:
    """The library's version, all its numbers."""
    found = getattr(trt, "__version__", None)  # the front package of 8.6.1 on PyPI does not say
    return str(found) if found is not None else metadata.version(trt.__name__)


class ErrorLog:
    """What TensorRT logs as an error, for our messages. ``logger`` must live as long as what was made with it."""

    def __init__(self, trt: Any):
        self.errors: list[str] = []
        errors = self.errors
        severities = trt.ILogger.Severity

        class Collector(trt.ILogger):  # type: ignore[misc]  # TensorRT comes without types
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # super() alone is refused by the binding

            def log(self, severity: Any, msg: str) -> None:
                if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                    errors.append(msg)

        self.logger = Collector()

    def reason(self) -> str:
        """The first error since the last call, in one line."""
        first = self.errors[0] if self.errors else "it does not say why"
        self.errors.clear()
        return " ".join(first.split())[:400]
