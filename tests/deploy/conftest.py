"""Boards behind a real sshd, and bundles that do, or fail in each of the ways in which one can."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from boards import BoardSite, Sshd, missing_packages
from camera_servers import MjpegServer, showing_levels

from rdedge.contract import CONTRACT_FILE, Contract, encode_contract, sealed

MakeBundle = Callable[..., Path]
_SIZE_HW = (48, 64)


def _tiny_model() -> Any:
    """The model with a known answer and the contract around it, which the runtime's tests have."""
    path = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_TINY = _tiny_model()


@pytest.fixture(scope="session")
def packages() -> None:
    if missing := missing_packages():
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture(scope="session")
def host(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    opened = Sshd(tmp_path_factory.mktemp("host"))
    yield opened
    opened.close()


@pytest.fixture
def own_host(packages: None, tmp_path: Path) -> Iterator[Sshd]:
    """A host that the test may spoil."""
    (tmp_path / "host").mkdir()
    opened = Sshd(tmp_path / "host")
    yield opened
    opened.close()


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    """Shows a dark card, with a sensor's noise: a score of 0.8 by the tiny model, where held-out parts have 0.2."""
    with showing_levels(48, 55, 0.02) as server:
        yield server


@pytest.fixture
def board(tmp_path: Path, host: Sshd, camera: MjpegServer) -> Iterator[BoardSite]:
    """A line without a bundle yet; the test ends with a whole one at every moment since it had its first."""
    site = BoardSite(tmp_path, host, camera)
    yield site
    site.close()
    assert site.holes == []


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A bundle of the tiny model, by its name unlike all others; ``rejects``: on this line all parts; ``graph``: other
    bytes as its model."""

    def make(name: str, *, rejects: bool = False, graph: bytes | None = None) -> Path:
        folder = tmp_path / "lab" / name
        held_out = _TINY.png_of(204, _SIZE_HW)
        model = _TINY.darkness_graph(_SIZE_HW) if graph is None else graph
        files = {"model.onnx": model, "calibration/000.png": held_out, "calibration/001.png": held_out}
        contract: Contract = _TINY.contract_for(files, _SIZE_HW, None, 1)
        spec = contract.precisions["fp32"]
        threshold = msgspec.structs.replace(spec.image_threshold, value=0.5 if rejects else 0.9)
        changed = msgspec.structs.replace(
            contract,
            precisions={"fp32": msgspec.structs.replace(spec, image_threshold=threshold)},
            versions=contract.versions | {"name": name},
        )
        for file_name, data in (files | {CONTRACT_FILE: encode_contract(sealed(changed))}).items():
            (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file_name).write_bytes(data)
        return folder

    return make
