"""backend_faults.py BUNDLE MODULE OLD NEW: puts a fault into a module of rdedge and prints who noticed, as a JSON list.

The backend is used as a line uses it: recorded as a CUDA graph and plain, one and two frames under way, with memory of
its own and shared, on a driver that works as late as it may. An empty OLD is no fault.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from fake_kernels import driver, refuse, report
from fake_tensorrt import make_module
from frame_streams import assert_same, assert_same_pipeline, assert_same_stream, frames

from rdedge.backends import open_backend
from rdedge.bundle import open_bundle
from rdedge.errors import BackendError
from rdedge_export.engine_build import build_engine

MODULES = ("cuda", "cuda_graph", "trt_slot", "trt")  # each is imported by those after it


def main(folder: Path, faulty: str, old: str, new: str) -> list[str]:
    trt = make_module("10.3.0")
    sys.modules["tensorrt"] = trt
    bundle = open_bundle(folder)
    build_engine(
        bundle,
        "fp32",
        "tensorrt",
        workspace_mb=None,
        if_needed=False,
        progress=lambda *step: None,
        say=lambda text: None,
    )
    driver().nullcuda_lazy(1)
    damage(faulty, old, new)
    found: list[str] = []
    for is_recorded, in_flight, shares_memory in itertools.product((True, False), (2, 1), (False, True)):
        trt.fake.fails_in_capture = not is_recorded
        os.environ.pop("NULLCUDA_INTEGRATED", None)
        if shares_memory:
            os.environ["NULLCUDA_INTEGRATED"] = "1"
        try:
            backend: Any = open_backend(bundle, backend="tensorrt", frames_in_flight=in_flight)
            found += faults_of(backend, open_backend(bundle), trt.fake, is_recorded=is_recorded)
        except Exception as exc:
            found.append(f"raises {exc!r}")
        refuse("")
        trt.fake.fails_on_frame = False
        if found:
            break
    return found + trt.fake.misuse


def damage(faulty: str, old: str, new: str) -> None:
    """The module is made anew from its changed source, and so is what has imported it."""
    for name in MODULES:
        module: Any = importlib.import_module(f"rdedge.backends.{name}")
        if name != faulty:
            importlib.reload(module)
            continue
        source = inspect.getsource(module)
        assert source.count(old) == 1 or not old, f"{source.count(old)} times in {name}: {old}"
        exec(compile(source.replace(old, new) if old else source, str(module.__file__), "exec"), module.__dict__)


def faults_of(backend: Any, reference: Any, fake: Any, *, is_recorded: bool) -> list[str]:
    found: list[str] = []
    if (backend.cuda_graph == "replayed") != is_recorded:
        found.append(f"CUDA graph: {backend.cuda_graph}")
    first, second, third = frames(3, seed=7)
    kept = backend.infer(first)
    try:
        assert_same_pipeline(backend, reference, 6)
        assert_same_stream(backend, reference, 2, seed=2)
        if backend.device_ms <= 0:
            found.append("no time")
    except AssertionError:
        found.append("other answers")
    try:
        assert_same(kept, reference.infer(first))
    except AssertionError:
        found.append("an answer was overwritten")
    fake.fails_on_frame = True
    if answers(backend.infer, second):
        found.append("a failed frame has an answer")
    fake.fails_on_frame = False
    refuse("cuGraphLaunch" if is_recorded else "cuLaunchHostFunc")
    if answers(backend.infer, second):
        found.append("a frame that was not started has an answer")
    try:
        assert_same_pipeline(backend, reference, 3, seed=3)
    except AssertionError:
        found.append("other answers after a failure")
    found += out_of_turn(backend, second, third)
    for _ in range(backend.frames_in_flight):
        backend.start(third)
    held = [[slot, *slot._buffers] for slot in backend._slots]  # closing gives back what others still hold
    backend.close()
    gc.collect()
    if fake.live:
        found.append("TensorRT's objects are left")
    assert len(held) == backend.frames_in_flight
    return found + left(report())


def out_of_turn(backend: Any, frame: np.ndarray, other: np.ndarray) -> list[str]:
    found: list[str] = []
    if answers(lambda _: backend.finish(), frame):
        found.append("an answer without a frame")
    refused: list[bool] = []
    thread = threading.Thread(target=lambda: refused.append(not answers(backend.infer, frame)))
    thread.start()
    thread.join()
    if refused != [True]:
        found.append("another thread is served")
    for _ in range(backend.frames_in_flight):
        backend.start(frame)
        if answers(backend.infer, other):
            found.append("an answer to another frame")
            return found
    if answers(backend.start, other):
        found.append("a frame too many is taken")
    for _ in range(backend.frames_in_flight):
        backend.finish()
    return found


def left(seen: dict[str, Any]) -> list[str]:
    return [
        *(error["detail"] for error in seen["error_list"]),
        *(kind for kind, facts in seen["memory"].items() if facts["live"]),
        *(kind for kind, live in seen["objects_live"].items() if live and kind != "context"),
        *(["copies that would not overlap"] if seen["async_copies_of_pageable_memory"] else []),
    ]


def answers(ask: Any, frame: np.ndarray) -> bool:
    try:
        ask(frame)
    except BackendError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:5])))
