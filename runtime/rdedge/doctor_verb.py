"""``rdedge doctor``: what this machine has for the line, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import platform
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2

from rdedge.backends.cuda import CudaDevice, load_pycuda
from rdedge.backends.cuda_graph import CudaGraph, CudaGraphError
from rdedge.backends.trt_library import load_tensorrt, version_of
from rdedge.board.clocks import are_fixed, read_clocks
from rdedge.board.machine import is_jetson, text_of
from rdedge.board.nvpmodel import current_mode, fastest, read_modes
from rdedge.board.thermal import read_heat
from rdedge.contract import TensorSpec
from rdedge.engines import Flavour
from rdedge.errors import BackendError, MissingExtraError, UsageError
from rdedge.text import printable

_NEEDED_FREE_GB = 2.0  # an engine of the largest model, its timing cache, and reject pictures of a shift

Status = Literal["ok", "warning", "missing", "absent"]  # absent: not this kind of machine, nothing to mend


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at; ``remedy`` says what to do where it is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def execute(args: argparse.Namespace) -> int:
    """Prints the findings; 0 if some backend can run the line here, else 2."""
    findings = examine(Path("/"))
    backends = usable_backends(findings)
    if args.json:
        print(json.dumps({"backends": backends, "findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
        return 0 if backends else 2
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<8} {finding.name:<{width}}  {printable(finding.found)}")
        if finding.remedy:
            print(f"{'':<8} {'':<{width}}  -> {printable(finding.remedy)}")
    if backends:
        print(f"\nthe line can run on: {', '.join(backends)}")
        return 0
    print("\nno backend can run here: mend what is missing above; the CPU needs only pip install 'rdedge[cpu]'")
    return 2


def usable_backends(findings: list[Finding]) -> list[str]:
    """Backends of rdedge.backends whose every part was found."""
    ok = {finding.name for finding in findings if finding.status == "ok"}
    needs = {
        "tensorrt": {"GPU", "pycuda", "tensorrt"},
        "tensorrt-rtx": {"GPU", "pycuda", "tensorrt-rtx"},
        "onnxruntime": {"onnxruntime"},
        "openvino": {"openvino"},
    }
    return [backend for backend, parts in needs.items() if parts <= ok]


def examine(root: Path) -> list[Finding]:
    """Everything looked at, files below ``root`` (``/``, or a pretended one). Raises nothing of what it examines."""
    return [
        Finding(name="machine", status="ok", found=f"{platform.machine()}, Python {platform.python_version()}"),
        _jetpack(root),
        _driver(root),
        _gpu(),
        _pycuda(),
        _cuda_graph(),
        _tensorrt("tensorrt"),
        _tensorrt("tensorrt-rtx"),
        _cpu_engine("onnxruntime", "cpu", "also checks engines when they are built", otherwise="missing"),
        _cpu_engine("openvino", "openvino", "INT8 on the CPU", otherwise="absent"),  # ONNX Runtime runs the same graphs
        _opencv(on_jetson=is_jetson(root)),
        _disk(Path.cwd()),
        _power_mode(root),
        _clocks(root),
        _heat(root),
    ]


def _jetpack(root: Path) -> Finding:
    """``/etc/nv_tegra_release`` starts with "# R36 (release), REVISION: 4.3, GCID: ..."."""
    text = text_of(root / "etc/nv_tegra_release")
    if text is None:
        return Finding(name="L4T", status="absent", found="not a Jetson")
    release, _, rest = text.removeprefix("# R").partition(" (release), REVISION: ")
    revision = rest.partition(",")[0]
    return Finding(name="L4T", status="ok", found=f"{release}.{revision}" if revision else text.strip()[:80])


def _driver(root: Path) -> Finding:
    """The kernel module says its version on a desktop; on a Jetson it is part of L4T."""
    text = text_of(root / "proc/driver/nvidia/version")
    if text is not None:
        return Finding(name="driver", status="ok", found=text.splitlines()[0].strip()[:100])
    if is_jetson(root):
        return Finding(name="driver", status="ok", found="part of L4T")
    return Finding(
        name="driver",
        status="missing",
        found="no NVIDIA driver",
        remedy="apt install nvidia-driver (if there is a GPU)",
    )


def _gpu() -> Finding:
    try:
        device = CudaDevice()
    except (BackendError, MissingExtraError) as exc:
        return Finding(name="GPU", status="missing", found=exc.problem, remedy=_without_us(exc.remedy))
    memory = "shared with the CPU" if device.shares_memory else "its own"
    return Finding(name="GPU", status="ok", found=f"{device.name}, SM {device.compute_capability}, memory {memory}")


def _pycuda() -> Finding:
    try:
        cuda = load_pycuda()
        version = importlib.import_module("pycuda").VERSION_TEXT
        driver = cuda.get_driver_version()
    except MissingExtraError as exc:
        return Finding(name="pycuda", status="missing", found=exc.problem, remedy=_without_us(exc.remedy))
    return Finding(
        name="pycuda", status="ok", found=f"{version}, CUDA {driver // 1000}.{driver % 1000 // 10} in the driver"
    )


def _cuda_graph() -> Finding:
    """Records a copy and replays it; whether an engine can be recorded too, `rdedge selftest` says."""
    try:
        device = CudaDevice()
    except (BackendError, MissingExtraError):
        return Finding(name="CUDA graph", status="absent", found="needs a GPU and pycuda")
    try:
        _replay_a_copy(device)
    except (device.error, CudaGraphError) as exc:
        return Finding(
            name="CUDA graph",
            status="warning",
            found=f"{exc}; frames are enqueued one by one, which costs the CPU time",
            remedy="update the NVIDIA driver or JetPack: CUDA 11.4 or newer",
        )
    return Finding(name="CUDA graph", status="ok", found="recorded and replayed")


def _replay_a_copy(device: CudaDevice) -> None:
    with device.current(), ExitStack() as stack:
        stream = device.stream()
        buffer = device.buffer(TensorSpec(name="probe", dtype="uint8", shape=(16,)))
        stack.callback(buffer.free)
        graph = CudaGraph(stream.handle, lambda: buffer.upload(stream))
        stack.callback(graph.free)
        graph.launch(stream.handle)
        stream.synchronize()


def _tensorrt(flavour: Flavour) -> Finding:
    try:
        return Finding(name=flavour, status="ok", found=version_of(load_tensorrt(flavour)))
    except MissingExtraError as exc:
        return Finding(name=flavour, status="missing", found=exc.problem, remedy=exc.remedy)


def _cpu_engine(name: str, extra: str, use: str, *, otherwise: Status) -> Finding:
    """``otherwise``: what its absence is."""
    try:
        version = importlib.import_module(name).__version__
    except ImportError as exc:
        return Finding(
            name=name, status=otherwise, found=f"cannot be loaded ({exc})", remedy=f"pip install 'rdedge[{extra}]'"
        )
    return Finding(name=name, status="ok", found=f"{version}; {use}")


def _has_pygobject() -> bool:
    return importlib.util.find_spec("gi") is not None


def _opencv(*, on_jetson: bool) -> Finding:
    """OpenCV from PyPI has no GStreamer; a Jetson's CSI cameras need it, from OpenCV or from PyGObject."""
    lines = (line.split(":", 1) for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line)
    has_gstreamer = any(value.strip().startswith("YES") for _, value in lines)
    found = f"{cv2.__version__}, {'with' if has_gstreamer else 'without'} GStreamer"
    if has_gstreamer or not on_jetson or _has_pygobject():
        return Finding(name="OpenCV", status="ok", found=found)
    remedy = (
        "pip install 'rdedge[gobject]' && apt install gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base "
        "gstreamer1.0-plugins-good (CSI cameras need GStreamer)"
    )
    return Finding(name="OpenCV", status="warning", found=found, remedy=remedy)


def _disk(folder: Path) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.1f} GB free at {folder}"
    if free_gb >= _NEEDED_FREE_GB:
        return Finding(name="disk", status="ok", found=found)
    return Finding(
        name="disk", status="warning", found=found, remedy=f"free {_NEEDED_FREE_GB:.0f} GB: engines need room"
    )


def _power_mode(root: Path) -> Finding:
    """The mode's name; the fastest one differs from board to board, so it is read from nvpmodel's own file."""
    if not is_jetson(root):
        return Finding(name="power mode", status="absent", found="not a Jetson")
    try:
        modes = read_modes(root)
    except UsageError as exc:
        return Finding(name="power mode", status="warning", found=exc.problem, remedy=exc.remedy)
    current, best = current_mode(root, modes), fastest(modes)
    if current is None:
        return Finding(name="power mode", status="warning", found="nvpmodel does not say", remedy="sudo nvpmodel -q")
    if best is None or current == best.name:
        return Finding(name="power mode", status="ok", found=current)
    return Finding(
        name="power mode",
        status="warning",
        found=f"{current}, not the fastest, {best.name}",
        remedy=f"sudo nvpmodel -m {best.number}",
    )


def _clocks(root: Path) -> Finding:
    """Clocks that may fall make the first frames after a pause slow."""
    if not is_jetson(root):
        return Finding(name="clocks", status="absent", found="not a Jetson")
    clocks = read_clocks(root)
    if are_fixed(clocks):
        return Finding(name="clocks", status="ok", found="; ".join(map(str, clocks)))
    return Finding(name="clocks", status="warning", found="may fall between parts", remedy="sudo jetson_clocks")


def _heat(root: Path) -> Finding:
    """A board that is slowed down now answers late, whatever its mode."""
    heat = read_heat(root)
    if not heat.can_tell:
        return Finding(name="heat", status="absent", found="this machine does not say when it throttles")
    if heat.throttled:
        return Finding(
            name="heat",
            status="warning",
            found=f"slows down {', '.join(heat.throttled)}; {heat.hottest}",
            remedy="clean or turn up the fan, or use a mode of less power: `rdedge power`",
        )
    return Finding(name="heat", status="ok", found=heat.hottest)


def _without_us(remedy: str) -> str:
    """The remedy without its pointer to this command."""
    return remedy.partition("; `rdedge doctor`")[0].replace("see what `rdedge doctor` says", "see the lines above")
