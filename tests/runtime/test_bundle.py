"""A bundle opens only if every byte is as exported; anything else is a BundleError, never another exception."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdedge.bundle import Bundle, open_bundle, sha256_of_file
from rdedge.contract import CONTRACT_FILE
from rdedge.errors import BundleError, UsageError

FILES = (CONTRACT_FILE, "model.onnx", "report.html", "calibration/001.png")
SIZE_HW, GOOD_LEVEL = (48, 64), 204  # of the fixture


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert "; " in str(caught.value), "an error says what to do"
    return str(caught.value)


def test_a_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.path == bundle
    assert opened.contract.model.name == "darkness"
    assert opened.graph_path("fp32") == bundle / "model.onnx"
    assert sha256_of_file(bundle / "model.onnx") == opened.contract.files["model.onnx"]


def test_a_bundle_opens_by_a_name_in_text(bundle: Path) -> None:
    assert open_bundle(str(bundle)).contract.schema_version == 5


def test_a_precision_it_lacks_is_refused_with_those_it_has(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"has no int8 graph \(it has: fp32\); .* --precision int8"):
        open_bundle(bundle).graph_path("int8")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_wherever_it_is(bundle: Path, name: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        refusal(bundle)
    path.write_bytes(data)
    open_bundle(bundle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), start=st.floats(0, 1), length=st.integers(0, 40), data=st.binary(max_size=40))
def test_any_other_damage_is_noticed(bundle: Path, name: str, start: float, length: int, data: bytes) -> None:
    path = bundle / name
    whole = path.read_bytes()
    position = int(start * len(whole))
    damaged = whole[:position] + data + whole[position + length :]
    if damaged == whole:
        return
    path.write_bytes(damaged)
    refusal(bundle)
    path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_noticed(bundle: Path, name: str, share: float) -> None:
    os.truncate(bundle / name, int((bundle / name).stat().st_size * share))
    assert str(bundle / name) in refusal(bundle)


def test_an_altered_file_is_named_with_both_hashes(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other")
    assert "model.onnx: altered or incomplete (sha256 d9298a10d1b0…, the contract says " in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"{bundle / name}: is missing" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    assert f"{bundle / name}: is not a file" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_named_pipe_is_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert f"{bundle / name}: is not a file" in refusal(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "model.onnx", tmp_path / "elsewhere.onnx")
    (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert "model.onnx: is a link out of the bundle" in refusal(bundle)


def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    assert "model.onnx: is missing" in refusal(bundle)


def test_a_link_to_the_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert open_bundle(tmp_path / "current").contract.model.name == "darkness"


def test_calibration_frames_are_what_export_stored_in_rgb(bundle: Path) -> None:
    frames_u8 = open_bundle(bundle).calibration_frames()
    assert frames_u8.dtype == np.uint8 and frames_u8.shape == (2, *SIZE_HW, 3)
    for level, frame_u8 in zip((GOOD_LEVEL, GOOD_LEVEL - 1), frames_u8, strict=True):
        assert (frame_u8 == np.array([level, level - 1, level - 2])).all()


def with_calibration_frame(bundle: Path, reseal: Callable[[dict[str, object]], bytes], data: bytes) -> Bundle:
    """The bundle as it would be had export stored these bytes as the second frame."""
    (bundle / "calibration/001.png").write_bytes(data)
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["files"]["calibration/001.png"] = hashlib.sha256(data).hexdigest()
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    return open_bundle(bundle)


def test_a_frame_of_a_grey_camera_may_be_stored_in_one_channel(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes]
) -> None:
    grey_u8 = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)
    opened = with_calibration_frame(bundle, reseal, cv2.imencode(".png", grey_u8)[1].tobytes())
    assert (opened.calibration_frames()[1] == grey_u8[..., np.newaxis]).all()


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((48, 32, 3), np.uint8), r"got uint8 \(48, 32, 3\)"),
        (np.zeros((48, 32), np.uint8), r"got uint8 \(48, 32, 3\)"),
        (np.zeros((48, 64, 4), np.uint8), r"got uint8 \(48, 64, 4\)"),
        (np.zeros((48, 64, 3), np.uint16), r"got uint16 \(48, 64, 3\)"),
        (None, "got no picture"),
    ],
    ids=["size", "grey of another size", "alpha", "16 bit", "no PNG"],
)
def test_a_calibration_frame_of_another_kind_is_refused(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes], picture: NDArray[np.integer] | None, got: str
) -> None:
    data = b"no PNG" if picture is None else cv2.imencode(".png", picture)[1].tobytes()
    opened = with_calibration_frame(bundle, reseal, data)
    with pytest.raises(BundleError, match=rf"calibration/001.png: expected uint8 \(48, 64, 3\), {got}; "):
        opened.calibration_frames()


def test_an_empty_calibration_frame_is_refused(bundle: Path, reseal: Callable[[dict[str, object]], bytes]) -> None:
    with pytest.raises(BundleError, match=r"calibration/001\.png: "):
        with_calibration_frame(bundle, reseal, b"").calibration_frames()


def test_a_bundle_without_calibration_frames_says_so(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes]
) -> None:
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["calibration"]["frames"] = 0
    contract["files"] = {k: v for k, v in contract["files"].items() if not k.startswith("calibration/")}
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    with pytest.raises(BundleError, match="holds no calibration frames; "):
        open_bundle(bundle).calibration_frames()


@pytest.mark.parametrize("name", ["../report.html", "/etc/passwd", "a\0b"])
def test_a_contract_cannot_reach_out_of_the_bundle(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes], name: str
) -> None:
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["files"][name] = "0" * 64
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    assert "leaves the bundle" in refusal(bundle)


def test_a_name_too_long_for_the_file_system_is_missing(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes]
) -> None:
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    contract["files"]["x" * 300] = "0" * 64
    (bundle / CONTRACT_FILE).write_bytes(reseal(contract))
    assert "is missing" in refusal(bundle)


@pytest.mark.parametrize("name", ["nowhere", "parts/a.png", "x" * 300])
def test_what_is_no_folder_is_refused(tmp_path: Path, parts: Path, name: str) -> None:
    assert "no such bundle folder; name the folder that `rdedge export --out` made" in refusal(tmp_path / name)


def test_another_folder_is_no_bundle(parts: Path) -> None:
    assert "contract.json: is missing; name the folder that `rdedge export --out` made" in refusal(parts)


def test_a_huge_contract_is_not_read(bundle: Path) -> None:
    (bundle / CONTRACT_FILE).write_bytes(b" " * (1 << 20) + b"{}")
    assert "larger than 1 MiB" in refusal(bundle)


def test_a_contract_that_fails_while_it_is_read_is_a_bundle_error(bundle: Path) -> None:
    (bundle / CONTRACT_FILE).unlink()
    (bundle / CONTRACT_FILE).symlink_to("/proc/self/mem")  # a regular file that cannot be read from its start
    assert "contract.json: cannot be read (Input/output error)" in refusal(bundle)
