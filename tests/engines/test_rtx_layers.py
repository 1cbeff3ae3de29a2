"""What NVIDIA's own builder says of the layers it built, read by our code: the precisions asked for are there."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_rtx_builder import write_graphs

from rdedge.errors import BackendError
from rdedge_export.engine_layers import check_precision, layer_precisions

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="NVIDIA makes TensorRT-RTX for x86-64 only")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the edge model in each precision, the builder's account in the form of the inspector's JSON."""
    accounts = {}
    for precision, path in write_graphs("edge-lite0", tmp_path_factory.mktemp("edge")).items():
        command = [sys.executable, str(Path(__file__).with_name("rtx_layers.py")), str(path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        accounts[precision] = done.stdout
    return accounts


def of_kind(told: str, kind: str) -> Counter[str]:
    """How many layers of a kind run in which precision; ``correlation`` is what TensorRT-RTX calls a convolution."""
    layers = {layer["Name"]: layer["LayerType"] for layer in json.loads(told)["Layers"]}
    precisions = layer_precisions(told)
    assert precisions.keys() == layers.keys()
    return Counter(precision for name, precision in precisions.items() if layers[name] == kind)


def test_convolutions_run_in_the_precision_asked_for(told: dict[str, str]) -> None:
    fp32, fp16, int8 = (of_kind(told[precision], "correlation") for precision in ("fp32", "fp16", "int8"))
    print(fp32, fp16, int8)
    assert set(fp32) == {"fp32"} and fp32["fp32"] > 50
    assert fp16["fp16"] == fp16.total() == fp32.total()
    assert int8["int8"] > 0.4 * fp32.total() and not int8["fp32"], "what is not INT8 is FP16"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_sums_of_the_judging_part_stay_fp32(told: dict[str, str], precision: str) -> None:
    assert set(of_kind(told[precision], "gemm")) == {"fp32"}


@pytest.mark.parametrize("asked", ["fp32", "fp16", "int8"])
def test_an_engine_of_less_than_was_asked_for_is_known(told: dict[str, str], asked: str) -> None:
    check_precision(asked, layer_precisions(told[asked]))  # type: ignore[arg-type]
    for other in {"fp16": ["fp32"], "int8": ["fp32", "fp16"]}.get(asked, []):
        with pytest.raises(BackendError, match=f"asked to be {asked}, but of its"):
            check_precision(asked, layer_precisions(told[other]))  # type: ignore[arg-type]
