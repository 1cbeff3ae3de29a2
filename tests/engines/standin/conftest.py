"""pycuda on the stand-in driver; after each test nothing may be left and nothing may have been misused."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rdedge.backends import Backend, open_backend
from rdedge.bundle import open_bundle
from rdedge.contract import Precision
from rdedge.engines import EngineRecord
from rdedge_export.engine_build import build_engine

sys.path.append(str(Path(os.environ["RDEDGE_STANDIN"]) / "site"))
DRIVER = ctypes.CDLL("libcuda.so.1")
DRIVER.nullcuda_report.restype = ctypes.c_char_p
DRIVER.nullcuda_errors.restype = ctypes.c_ulong


def driver_report() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(DRIVER.nullcuda_report())
    return report


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Faults of the driver's use are counted by test, so that the one that made them fails."""
    before = DRIVER.nullcuda_errors(None)
    yield
    gc.collect()
    report = driver_report()
    assert report["error_list"][before:] == []
    assert {kind: facts["live"] for kind, facts in report["memory"].items() if facts["live"]} == {}
    assert {kind: live for kind, live in report["objects_live"].items() if live and kind != "context"} == {}


@pytest.fixture(autouse=True)
def fakes_are_gone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every runtime, engine and context was destroyed, and that where a CUDA context was current."""
    import fake_tensorrt

    made: list[Any] = []
    make = fake_tensorrt.make_module

    def remember(version: str) -> Any:
        made.append(make(version))
        return made[-1]

    for module in list(sys.modules.values()):
        if getattr(module, "make_module", None) is make:
            monkeypatch.setattr(module, "make_module", remember)
    yield
    gc.collect()
    for module in made:
        assert module.fake.misuse == [] and module.fake.live == 0


Build = Callable[..., EngineRecord]


@pytest.fixture
def build(engine_bundle: Path) -> Build:
    """Builds an engine of the test's bundle and returns its record."""

    def make(precision: Precision = "fp32", flavour: str = "tensorrt", **changes: Any) -> EngineRecord:
        options: dict[str, Any] = {"workspace_mb": None, "if_needed": False, "progress": lambda *step: None}
        bundle = open_bundle(engine_bundle)
        return build_engine(bundle, precision, flavour, say=lambda text: None, **(options | changes))[0]  # type: ignore

    return make


@pytest.fixture
def open_built(engine_bundle: Path) -> Iterator[Callable[..., Backend]]:
    """Opens what was built; closes it at the end."""
    opened: list[Backend] = []

    def make(precision: Precision = "fp32", flavour: str = "tensorrt") -> Backend:
        opened.append(open_backend(open_bundle(engine_bundle), backend=flavour, precision=precision))  # type: ignore
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
