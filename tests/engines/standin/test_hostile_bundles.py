"""`rdedge engine` on bundles that are not what they say: one line with a remedy, exit code 2, no engine."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_graphs import tiny_graph

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.contract import CONTRACT_FILE, encode_contract, sealed

GRAPH = "model.fp16.onnx"


def reseal(bundle: Path, **changes: Any) -> None:
    """A contract that fits its own hash, as a careful forger would leave it."""
    contract = msgspec.structs.replace(open_bundle(bundle).contract, **changes)
    (bundle / CONTRACT_FILE).write_bytes(encode_contract(sealed(contract)))


def put_graph(data: bytes) -> Callable[[Path], None]:
    def put(bundle: Path) -> None:
        files = dict(open_bundle(bundle).contract.files)
        reseal(bundle, files=files | {GRAPH: hashlib.sha256(data).hexdigest()})
        (bundle / GRAPH).write_bytes(data)

    return put


def without_frames(bundle: Path) -> None:
    contract = open_bundle(bundle).contract
    files = {name: digest for name, digest in contract.files.items() if not name.startswith("calibration/")}
    reseal(bundle, files=files, calibration=msgspec.structs.replace(contract.calibration, frames=0))


def with_a_damaged_frame(bundle: Path) -> None:
    contract = open_bundle(bundle).contract
    name = contract.calibration.file_names()[0]
    data = (bundle / name).read_bytes()[:60]
    reseal(bundle, files=contract.files | {name: hashlib.sha256(data).hexdigest()})
    (bundle / name).write_bytes(data)


def altered(bundle: Path) -> None:
    (bundle / GRAPH).write_bytes((bundle / GRAPH).read_bytes()[:-1] + b"?")


def linked_out(bundle: Path) -> None:
    shutil.move(bundle / GRAPH, bundle.parent / GRAPH)
    (bundle / GRAPH).symlink_to(bundle.parent / GRAPH)


BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "no such bundle folder"),
    "no contract": (lambda b: (b / CONTRACT_FILE).unlink(), "contract.json: is missing"),
    "contract cut": (lambda b: (b / CONTRACT_FILE).write_bytes(b'{"schema_version": 2'), "contract.json: "),
    "graph missing": (lambda b: (b / GRAPH).unlink(), "model.fp16.onnx: is missing"),
    "graph altered": (altered, "model.fp16.onnx: altered or incomplete"),
    "graph linked out": (linked_out, "model.fp16.onnx: is a link out of the bundle"),
    "graph no ONNX": (put_graph(b"not a graph"), "model.fp16.onnx: ONNX Runtime refuses it"),
    "graph empty": (put_graph(b""), "model.fp16.onnx: ONNX Runtime refuses it"),
    "graph cut": (put_graph(tiny_graph("fp16")[:-60]), "model.fp16.onnx: "),
    "graph of another size": (put_graph(tiny_graph("fp16", (64, 64))), "tensor frame is "),
    "graph of another precision": (put_graph(tiny_graph("fp32")), "asked to be fp16, but of its "),
    "no frames": (without_frames, "holds no calibration frames"),
    "damaged frame": (with_a_damaged_frame, "expected uint8 (32, 48, 3), got no picture"),
    "engines is a file": (lambda b: (b / "engines").touch(), "engines: File exists; check the path"),
    "engines is a link to nowhere": (lambda b: (b / "engines").symlink_to("nowhere"), "engines: File exists"),
}


@pytest.mark.parametrize("kind", BUNDLES)
def test_no_engine_is_built_of_it(
    install_tensorrt: Any, engine_bundle: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = install_tensorrt("11.4.0")
    damage, message = BUNDLES[kind]
    damage(engine_bundle)
    assert main(["engine", str(engine_bundle), "--precision", "fp16"]) == 2
    err = capsys.readouterr().err
    assert message in err and "; " in err and err.count("\n") == 1, err
    assert trt.fake.builds == (kind == "graph of another precision")
    assert not [path for path in engine_bundle.glob("engines/*") if path.name != ".lock"]
