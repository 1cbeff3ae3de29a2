"""backend_faults.py BUNDLE OLD NEW: puts a fault into rdedge.backends.trt and prints who noticed, as a JSON list."""

from __future__ import annotations

import ctypes
import gc
import inspect
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
from fake_tensorrt import cuda_driver, make_module

import rdedge.backends.trt as trt_module
from rdedge.backends import open_backend
from rdedge.bundle import open_bundle
from rdedge.errors import BackendError
from rdedge_export.engine_build import build_engine


def main(folder: Path, old: str, new: str) -> list[str]:
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
    source = inspect.getsource(trt_module)
    assert old in source
    damaged: Any = types.ModuleType("damaged")
    sys.modules["damaged"] = damaged
    exec(compile(source.replace(old, new), "damaged", "exec"), damaged.__dict__)
    found: list[str] = []
    try:
        found += faults_of(damaged.open_engine(bundle, "fp32", "tensorrt"), open_backend(bundle), trt.fake)
    except Exception as exc:
        found.append(f"raises {exc!r}")
    return found + trt.fake.misuse


def faults_of(backend: Any, reference: Any, fake: Any) -> list[str]:
    found, kept = [], []
    for seed in range(3):
        frame = np.random.default_rng(seed).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        kept.append((backend.infer(frame), reference.infer(frame)))
    if any(got.anomaly_map.tobytes() != expected.anomaly_map.tobytes() for got, expected in kept):
        found.append("other maps")
    if any(got.score.tobytes() != expected.score.tobytes() for got, expected in kept):
        found.append("other scores")
    fake.fails_on_frame = True
    if not refuses(backend, frame):
        found.append("a failed frame has an answer")
    fake.fails_on_frame = False
    refused: list[bool] = []
    thread = threading.Thread(target=lambda: refused.append(refuses(backend, frame)))
    thread.start()
    thread.join()
    if refused != [True]:
        found.append("another thread is served")
    backend.close()
    gc.collect()
    if fake.live:
        found.append("TensorRT's objects are left")
    driver = cuda_driver()
    driver.nullcuda_report.restype = ctypes.c_char_p
    report = json.loads(driver.nullcuda_report())  # while the closed backend is still there
    found += [error["detail"] for error in report["error_list"]]
    found += [kind for kind, facts in report["memory"].items() if facts["live"]]
    found += [kind for kind, live in report["objects_live"].items() if live and kind != "context"]
    return found


def refuses(backend: Any, frame: Any) -> bool:
    try:
        backend.infer(frame)
    except BackendError:
        return True
    return False


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:4])))
