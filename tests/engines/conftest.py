"""Bundles of all three precisions, and a fake TensorRT for each version file in tests/trt_api."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import write_bundle
from fake_tensorrt import VERSIONS, make_module

# Run by test_standin.py in a process of its own: a pretend CUDA driver in this one would mislead torch.
collect_ignore = [] if "RDEDGE_STANDIN" in os.environ else ["standin"]
WriteEngineBundle = Callable[..., Path]


@pytest.fixture
def write_engine_bundle(tmp_path: Path) -> WriteEngineBundle:
    """A bundle of fp32, fp16 and int8 with six calibration frames."""

    def write(name: str = "bundle", batch: int = 1) -> Path:
        return write_bundle(tmp_path / name, batch=batch)

    return write


@pytest.fixture
def engine_bundle(write_engine_bundle: WriteEngineBundle) -> Path:
    return write_engine_bundle()


InstallTensorRt = Callable[[str], Any]


@pytest.fixture
def install_tensorrt(monkeypatch: pytest.MonkeyPatch) -> InstallTensorRt:
    """Makes a version the one that ``import tensorrt`` (or ``tensorrt_rtx``) finds."""

    def install(version: str) -> Any:
        module = make_module(version)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return install


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, install_tensorrt: InstallTensorRt) -> Any:
    """The fake TensorRT of each version in turn."""
    return install_tensorrt(request.param)
