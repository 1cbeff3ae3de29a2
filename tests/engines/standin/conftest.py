"""pycuda on the stand-in driver; after each test nothing may be left and nothing may have been misused."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kernels import driver, refuse, report

from rdedge.backends import Backend, open_backend
from rdedge.bundle import open_bundle
from rdedge.contract import Precision
from rdedge.engines import EngineRecord
from rdedge_export.engine_build import build_engine

sys.path.append(str(Path(os.environ["RDEDGE_STANDIN"]) / "site"))


@pytest.fixture(scope="session", autouse=True)
def collecting_is_fast() -> None:
    """Every test collects garbage; what the imports have made is none and need not be looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Faults of the driver's use are counted by test, so that the one that made them fails."""
    before = driver().nullcuda_errors(None)
    yield
    gc.collect()
    found = report()
    assert found["error_list"][before:] == []
    assert {kind: facts["live"] for kind, facts in found["memory"].items() if facts["live"]} == {}
    assert {kind: live for kind, live in found["objects_live"].items() if live and kind != "context"} == {}


@pytest.fixture(autouse=True)
def nothing_is_refused() -> Iterator[None]:
    """What a test lets fail does not fail the next."""
    yield
    refuse("")


@pytest.fixture(params=["lazy", "eager"])
def pace(request: pytest.FixtureRequest) -> Iterator[None]:
    """The driver works as late as it may, or at once."""
    driver().nullcuda_lazy(request.param == "lazy")
    yield
    driver().nullcuda_lazy(1)


@pytest.fixture(params=["discrete", "integrated"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with memory of its own, or one that shares the CPU's."""
    if request.param == "integrated":
        monkeypatch.setenv("NULLCUDA_INTEGRATED", "1")


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


@pytest.fixture
def built(install_tensorrt: Any, build: Any) -> Any:
    """TensorRT 10.3 with an FP32 engine in the test's bundle."""
    module = install_tensorrt("10.3.0")
    build()
    return module.fake


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

    def make(precision: Precision = "fp32", flavour: str = "tensorrt", frames_in_flight: int = 1) -> Backend:
        bundle = open_bundle(engine_bundle)
        opened.append(
            open_backend(bundle, backend=flavour, precision=precision, frames_in_flight=frames_in_flight)  # type: ignore
        )
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
