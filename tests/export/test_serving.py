"""`rdedge export --triton --deepstream`: of a run, of a bundle, and what is refused before anything is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.cli import main

Refused = Callable[..., str]
Snapshot = Callable[[Path], dict[str, str]]


def test_of_a_run_they_come_with_the_bundle(tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, triton, deepstream = (tmp_path / name for name in ("bundle", "triton", "deepstream"))
    command = ["export", str(tiny_run), "--out", str(out), "--triton", str(triton), "--deepstream", str(deepstream)]
    assert main(command) == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[-3] == f"Triton {triton}: fp32 graph; see its README.txt"
    assert printed[-2].startswith(f"DeepStream {deepstream}: fp32 graph, within 0.0e+00 of the bundle's; see its")
    assert (triton / "rdedge/1/model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["bundle", "deepstream", "triton"]


def test_of_a_bundle_nothing_else_is_made(tiny_bundle: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    before = snapshot(tiny_bundle)
    assert main(["export", str(tiny_bundle), "--triton", str(tmp_path / "t")]) == 0
    assert os.listdir(tmp_path) == ["t"] and snapshot(tiny_bundle) == before


@pytest.mark.parametrize("option", ["--triton", "--deepstream"])
def test_a_folder_that_is_there_is_refused_before_the_export(
    tiny_run: Path, tmp_path: Path, refused: Refused, option: str
) -> None:
    (tmp_path / "there").symlink_to("nowhere")
    message = refused("export", tiny_run, "--out", tmp_path / "bundle", option, tmp_path / "there")
    assert message == f"rdedge: error: {tmp_path}/there already exists; name another folder or remove it first\n"
    assert os.listdir(tmp_path) == ["there"]


def test_what_is_asked_of_the_wrong_thing_is_refused(
    tiny_run: Path, tiny_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    assert "nothing to make; add --out BUNDLE; of a bundle, --triton DIR" in refused("export", tiny_run)
    assert "contract.json: is missing" in refused("export", tiny_run, "--triton", tmp_path / "t")
    message = refused("export", tiny_bundle, "--triton", tmp_path / "t", "--precision", "fp32,int8")
    assert "has no int8 graph (it has: fp32); use one of these, or export with --precision int8" in message
    assert os.listdir(tmp_path) == []
