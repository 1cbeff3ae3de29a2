"""The whole TensorRT backend on a pretend GPU: real pycuda, real copies, every misuse of the driver reported.

The tests are in standin/ and run in a process of their own, whose CUDA driver is tests/cuda_standin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STANDIN = HERE.parent / "cuda_standin"


@pytest.fixture(scope="session")
def standin() -> Path:
    """The built driver and pycuda; the first time on a machine this takes some minutes."""
    done = subprocess.run(
        ["bash", str(STANDIN / "build.sh"), sys.executable], stdout=subprocess.PIPE, text=True, timeout=1500
    )
    assert done.returncode == 0, "tests/cuda_standin/build.sh failed; it needs gcc, g++ and make"
    return Path(done.stdout.strip())


def run(standin: Path, report: Path, *arguments: str) -> dict[str, object]:
    """pytest in a process whose CUDA driver is the stand-in; the driver's report at its end."""
    environment = os.environ | {
        "RDEDGE_STANDIN": str(standin),
        "LD_LIBRARY_PATH": str(standin / "lib"),
        "NULLCUDA_REPORT": str(report),
        "NULLCUDA_STRICT": "exit",
        "NULLCUDA_QUIET": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout.strip().splitlines()[-1])
    found: dict[str, object] = json.loads(report.read_text())
    return found


def check(report: dict[str, object]) -> None:
    assert report["errors_by_kind"] == {} and report["not_implemented"] == {}
    assert report["async_copies_of_pageable_memory"] == 0, "copies that would not overlap on a GPU"
    memory = report["memory"]
    assert isinstance(memory, dict) and memory["device"]["allocations"] > 100
    assert {kind: facts["live"] for kind, facts in memory.items()} == dict.fromkeys(memory, 0)


def test_the_backend_and_the_builder_on_the_pretend_gpu(standin: Path, tmp_path: Path) -> None:
    check(run(standin, tmp_path / "report.json", str(HERE / "standin"), "-m", "not slow"))


# Faults put into the backend's code: the answers then differ, or the driver reports misuse or a leak.
FAULTS = {
    "the frame stays where it was": ("        np.copyto(frame.host, frame_u8)\n", ""),
    "no upload": ("        frame.upload(self._stream)\n", ""),
    "no download": ("            output.download(self._stream)\n", "            pass\n"),
    "answers are the buffers": ("(output.host.copy() for output in outputs)", "(output.host for output in outputs)"),
    "host address": (
        "set_tensor_address(spec.name, buffer.address)",
        "set_tensor_address(spec.name, buffer.host.ctypes.data)",
    ),
    "outputs swapped": (
        "for spec in (self._graph.anomaly_map, self._graph.score)]",
        "for spec in (self._graph.score, self._graph.anomaly_map)]",
    ),
    "one address for all": (
        "set_tensor_address(spec.name, buffer.address)",
        "set_tensor_address(spec.name, self._buffers['frame'].address)",
    ),
    "buffers kept": (
        "            for buffer in self._buffers.values():\n"
        "                buffer.free()\n"
        "            self._buffers.clear()\n",
        "",
    ),
    "context kept": ("            self._context = None  # in", "            pass  # in"),
    "engine kept": ("            self._engine = None\n", ""),
    "runtime kept": ("            self._runtime = None\n", ""),
    "stream and events kept": ("            self._stream = self._started = self._ended = None\n", ""),
    "refusal unseen": ("        if not is_queued:\n", "        if False:\n"),
    "any thread": ("        if threading.get_ident() != self._thread:\n", "        if False:\n"),
    "closed outside the GPU's context": (
        "        with self._device.current():\n            self._context",
        "        if True:\n            self._context",
    ),
}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_a_fault_in_the_backend_does_not_go_unseen(standin: Path, engine_bundle: Path, fault: str) -> None:
    environment = os.environ | {"LD_LIBRARY_PATH": str(standin / "lib"), "NULLCUDA_QUIET": "1"}
    paths = [str(standin / "site"), str(HERE), *filter(None, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(HERE / "backend_faults.py"), str(engine_bundle), *FAULTS.get(fault, ("", ""))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert bool(json.loads(done.stdout)) == (fault != "none"), done.stdout


@pytest.mark.slow
def test_a_long_stream_on_the_pretend_gpu(standin: Path, tmp_path: Path) -> None:
    report = run(standin, tmp_path / "report.json", str(HERE / "standin"), "-m", "slow")
    assert report["errors_by_kind"] == {}


@pytest.mark.slow
def test_the_pretend_driver_reports_what_it_should(standin: Path) -> None:
    environment = os.environ | {"LD_LIBRARY_PATH": str(standin / "lib"), "PYTHONPATH": str(standin / "site")}
    command = [sys.executable, str(STANDIN / "smoke_pycuda.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
