"""``rdedge info`` shows a bundle only if it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.cli import main
from rdedge.contract import CONTRACT_FILE


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["info", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_table_says_what_the_bundle_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size_mb = (bundle / "model.onnx").stat().st_size / 1e6
    assert shown(capsys, bundle) == (
        f"{bundle}\n"
        "  created            2026-11-22T08:15:00Z\n"
        "  model              darkness, 1.5 M parameters\n"
        "  trained with       OCBE none, loss flattened, head plain\n"
        "  teacher            none\n"
        "  trained on         20 good parts (sha256 bbbbbbbbbbbb)\n"
        "  held out           99 good parts (split every fifth, seed 7)\n"
        "  input              64x48 RGB, whole picture, shrunk by area+linear\n"
        "  calibration        2 held-out good parts, to refit thresholds on the device\n"
        "  versions           rdedge 0.1.0, torch 2.14.1\n"
        f"  fp32               model.onnx, {size_mb:.1f} MB\n"
        "    image threshold  0.5: quantile of 99 held-out good parts; asked for 1.00% false rejects,"
        " expect 1.00% (0.00% to 4.00%, 95% sure)\n"
        "    pixel threshold  0.4: quantile of the pixels of 99 held-out good parts;"
        " asked for 0.10% of pixels above it, expect 1.00% (0.00% to 4.00%, 95% sure)\n"
        "    parity           off by at most 2e-06 in the map, 1e-06 in the score on 4 frames (allowed 0.0001)\n"
        "    measured         on 30 labelled parts: image AUROC 0.987, false rejects 0.050, misses 0.100\n"
        "  files              all 4 files match their sha256\n"
    )


def test_too_few_held_out_parts_are_said(
    bundle: Path, capsys: pytest.CaptureFixture[str], reseal: Callable[[dict[str, object]], bytes]
) -> None:
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["precisions"]["fp32"]["image_threshold"] |= {"rule": "pot", "parts": 98}
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    out = shown(capsys, bundle)
    assert "    image threshold  0.5: peaks over threshold of 98 held-out good parts; asked for" in out
    assert "    few parts        1.00% false rejects need 99 held-out good parts, 98 were there: " in out


def test_a_region_of_interest_is_shown(write_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "64x48 RGB, region 128x96 at (100, 50), " in shown(capsys, write_bundle(roi_xywh=(100, 50, 128, 96)))


def test_json_is_the_contract(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, bundle, "--json")
    assert out == (bundle / CONTRACT_FILE).read_text()
    assert json.loads(out)["model"]["name"] == "darkness"


def test_what_was_not_measured_is_not_shown(
    bundle: Path, capsys: pytest.CaptureFixture[str], reseal: Callable[[dict[str, object]], bytes]
) -> None:
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["precisions"]["fp32"]["metrics"] = None
    contract["model"]["name"] = "\x1b[31mred"
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    out = shown(capsys, bundle)
    assert "    measured         not on labelled parts\n" in out
    assert "model              \\x1b[31mred, " in out, "a contract cannot paint the terminal"


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("damage", ["no bundle", "a file", "no contract", "flipped", "missing", "edited", "link"])
def test_a_bundle_that_is_not_whole_is_one_line(
    bundle: Path, refused: Callable[..., str], damage: str, option: list[str]
) -> None:
    path, says = bundle, ""
    if damage == "no bundle":
        path, says = bundle / "nowhere", "nowhere: no such bundle folder; name the folder"
    elif damage == "a file":
        path, says = bundle / "model.onnx", "model.onnx: no such bundle folder; name the folder"
    elif damage == "no contract":
        (bundle / CONTRACT_FILE).unlink()
        says = "contract.json: is missing; name the folder"
    elif damage == "flipped":
        data = bytearray((bundle / "model.onnx").read_bytes())
        data[100] ^= 1
        (bundle / "model.onnx").write_bytes(data)
        says = "model.onnx: altered or incomplete"
    elif damage == "missing":
        (bundle / "report.html").unlink()
        says = "report.html: is missing; copy the bundle again"
    elif damage == "edited":
        contract = (bundle / CONTRACT_FILE).read_bytes()
        (bundle / CONTRACT_FILE).write_bytes(contract.replace(b'"value": 0.5', b'"value": 0.9'))
        says = "contract.json: was changed after export (its own sha256 does not fit)"
    else:
        (bundle / "model.onnx").unlink()
        (bundle / "model.onnx").symlink_to("/bin/sh")
        says = "model.onnx: is a link out of the bundle"
    assert says in refused("info", path, *option)
