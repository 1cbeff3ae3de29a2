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
        "NULLCUDA_LAZY": "1",
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


# Faults put into rdedge.backends: the answers then differ, or the driver or the fake TensorRT reports misuse or a leak.
FAULTS = {
    "the frame stays where it was": ("trt_slot", "        np.copyto(self._buffers[0].host, frame_u8)\n", ""),
    "the frame's own array": (
        "trt_slot",
        "        np.copyto(self._buffers[0].host, frame_u8)\n",
        "        self._buffers[0].host = frame_u8\n",
    ),
    "no upload": ("trt_slot", "        frame.upload(self._stream)\n", ""),
    "no download": ("trt_slot", "            output.download(self._stream)\n", "            pass\n"),
    "download before the engine": (
        "trt_slot",
        "        frame.upload(self._stream)\n",
        "        frame.upload(self._stream)\n        [output.download(self._stream) for output in outputs]\n"
        "        outputs = []\n",
    ),
    "no wait for the frame": (
        "trt_slot",
        'GPU\'s clock. Raises the driver\'s error."""\n        self._stream.synchronize()\n',
        '"""\n',
    ),
    "a wait for the start of the frame": (
        "trt_slot",
        'GPU\'s clock. Raises the driver\'s error."""\n        self._stream.synchronize()\n',
        '"""\n        self._started.synchronize()\n',
    ),
    "answers are the buffers": ("trt_slot", "anomaly_map=anomaly_map.copy()", "anomaly_map=anomaly_map"),
    "scores are the buffers": ("trt_slot", "score=score.copy()", "score=score"),
    "no end event": ("trt_slot", "        self._ended.record(self._stream)\n", ""),
    "host address": (
        "trt_slot",
        "self._buffers[-1].address)",
        "self._buffers[-1].host.ctypes.data)",
    ),
    "outputs swapped": ("trt_slot", "_, anomaly_map, score = (", "_, score, anomaly_map = ("),
    "one address for all": ("trt_slot", "self._buffers[-1].address)", "self._buffers[0].address)"),
    "buffers kept": ("trt_slot", "            buffer.free()\n        self._buffers.clear()\n", "            pass\n"),
    "context kept": ("trt_slot", "        self.context = None\n        for", "        for"),
    "stream and events kept": ("trt_slot", "        self._stream = self._started = self._ended = None\n", ""),
    "graph kept": ("trt_slot", "        self.forget_record()\n        self.context", "        self.context"),
    "closed while a frame is under way": (
        "trt_slot",
        "                self._stream.synchronize()\n        self.forget",
        "                pass\n        self.forget",
    ),
    "refusal unseen": (
        "trt_slot",
        "        if not self.context.execute_async_v3(self._stream.handle):\n",
        "        if not self.context.execute_async_v3(self._stream.handle) and False:\n",
    ),
    "another stream": (
        "trt_slot",
        "        if not self.context.execute_async_v3(self._stream.handle):\n",
        "        if not self.context.execute_async_v3(self._device.stream().handle):\n",
    ),
    "graph never replayed": (
        "trt_slot",
        "        if self._replay is not None:\n            self._replay.launch",
        "        if False:\n            self._replay.launch",
    ),
    "recorded before the first frame": (
        "trt",
        "            slot.start(blank_u8)\n            slot.finish()\n            try:\n",
        "            try:\n",
    ),
    "slots mixed up": ("trt", "slot = self._under_way.popleft()", "slot = self._under_way.pop()"),
    "a slot taken twice": (
        "trt",
        "self._under_way.append(self._idle.popleft())",
        "self._under_way.append(self._idle[0])",
    ),
    "a slot lost on failure": (
        "trt",
        "            self._idle[0].start(frame_u8)\n            self._under_way.append(self._idle.popleft())\n",
        "            slot = self._idle.popleft()\n            slot.start(frame_u8)\n"
        "            self._under_way.append(slot)\n",
    ),
    "a slot lost by its answer's failure": (
        "trt",
        "            self._idle.append(slot)\n            prediction, self.device_ms = slot.finish()\n",
        "            prediction, self.device_ms = slot.finish()\n            self._idle.append(slot)\n",
    ),
    "one context for all slots": (
        "trt",
        "            slot.context = self._engine.create_execution_context()\n",
        "            slot.context = self._slots[0].context or self._engine.create_execution_context()\n",
    ),
    "one slot for two frames": ("trt", "for _ in range(self.frames_in_flight):", "for _ in range(1):"),
    "infer out of turn": (
        "trt",
        "        if self._under_way:\n            raise",
        "        if False:\n            raise",
    ),
    "slots kept": ("trt", "                    slot.free()\n", "                    pass\n"),
    "engine kept": ("trt", "                self._engine = None  # in", "                pass  # in"),
    "runtime kept": ("trt", "                self._runtime = None\n", ""),
    "any thread": ("trt", "        if threading.get_ident() != self._thread:\n", "        if False:\n"),
    "closed outside the GPU's context": (
        "trt",
        "            with self._device.current():\n                for slot",
        "            if True:\n                for slot",
    ),
    "graph not given back": ("cuda_graph", "                driver.cuGraphDestroy(graph)\n", "                pass\n"),
    "executable not given back": (
        "cuda_graph",
        "            _driver().cuGraphExecDestroy(self._executable)",
        "            pass",
    ),
    "given back twice": (
        "cuda_graph",
        "            self._executable = _HANDLE()\n",
        "            _driver().cuGraphExecDestroy(self._executable)\n",
    ),
    "recording left open after a failure": (
        "cuda_graph",
        "                driver.cuStreamEndCapture(stream_handle, ctypes.byref(graph))\n                raise\n",
        "                raise\n",
    ),
    "status unseen": ("cuda_graph", "    if status != 0:\n", "    if False:\n"),
    "no memory of its own": (
        "cuda",
        "            self._cuda.memcpy_htod_async(self._on_device, self.host, stream)\n",
        "            pass\n",
    ),
    "page-locked memory kept": ("cuda", "            self._allocation.free()\n", ""),
}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_a_fault_in_the_backend_does_not_go_unseen(standin: Path, engine_bundle: Path, fault: str) -> None:
    environment = os.environ | {"LD_LIBRARY_PATH": str(standin / "lib"), "NULLCUDA_QUIET": "1"}
    paths = [str(standin / "site"), str(HERE), *filter(None, sys.path)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    faulty, old, new = FAULTS.get(fault, ("trt", "", ""))
    command = [sys.executable, str(HERE / "backend_faults.py"), str(engine_bundle), faulty, old, new]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert bool(found) == (fault != "none") and "times in" not in str(found), found


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
