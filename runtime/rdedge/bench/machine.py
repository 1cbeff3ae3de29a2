"""What a number was measured on: processor, board, power mode, clocks, versions and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from rdedge import doctor_verb
from rdedge.backends import BackendName
from rdedge.backends.cuda import CudaDevice, load_pycuda
from rdedge.board.machine import is_jetson, model_of, processor_name
from rdedge.versions import library_versions

_PACKAGES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "pycuda"),
    "tensorrt-dla0": ("tensorrt", "pycuda"),
    "tensorrt-dla1": ("tensorrt", "pycuda"),
    "tensorrt-rtx": ("tensorrt_rtx", "pycuda"),
    "fake": (),
}


def machine(root: Path = Path("/")) -> dict[str, str]:
    """Processor, cores and system; on a Jetson the board, its L4T, power mode and whether clocks are fixed.

    ``root``: ``/``, or a pretended one.
    """
    facts = {
        "processor": processor_name(root),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if is_jetson(root):
        facts["board"] = model_of(root) or "unknown"
        facts["L4T"] = doctor_verb._jetpack(root).found
        facts["power mode"] = doctor_verb._power_mode(root).found
        facts["clocks"] = doctor_verb._clocks(root).found
    return facts


def versions(backend: BackendName) -> dict[str, str]:
    """Of Python, rdedge and what the line runs on."""
    return library_versions("msgspec", "cv2", *_PACKAGES[backend])


def device_used_mb() -> float:
    """Memory in use on the first GPU, whoever uses it. Raises BackendError, MissingExtraError."""
    with CudaDevice().current():
        free, total = load_pycuda().mem_get_info()
    return float(total - free) / (1 << 20)
