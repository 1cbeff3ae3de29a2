"""A bundle: the directory that crosses from the lab to the line, opened only if every byte is as exported."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.contract import CONTRACT_FILE, Contract, Precision, PrecisionSpec, decode_contract
from rdedge.errors import BundleError, UsageError

_MAX_CONTRACT_BYTES = 1 << 20
_EXPORT_AGAIN = "copy the bundle again, or export it again with `rdedge export`"
_NAME_A_BUNDLE = "name the folder that `rdedge export --out` made"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle."""

    path: Path
    contract: Contract

    def precision_spec(self, precision: Precision) -> PrecisionSpec:
        """Graph file and thresholds of one precision. Raises UsageError if the bundle has none."""
        spec = self.contract.precisions.get(precision)
        if spec is None:
            have = ", ".join(self.contract.precisions)
            raise UsageError(
                f"{self.path}: has no {precision} graph (it has: {have})",
                remedy=f"use one of these, or export with --precision {precision}",
            )
        return spec

    def graph_path(self, precision: Precision) -> Path:
        """The ONNX file of one precision."""
        return self.path / self.precision_spec(precision).file

    def calibration_frames(self) -> NDArray[np.uint8]:
        """Held-out good parts as the graph sees them: uint8 (n, H, W, 3) RGB.

        Raises BundleError if the bundle holds none, or a file that is not a picture of the model's size.
        """
        names = self.contract.calibration.file_names()
        if not names:
            raise BundleError(f"{self.path}: holds no calibration frames", remedy=_EXPORT_AGAIN)
        frames_u8 = np.empty((len(names), *self.contract.input.size_hw, 3), np.uint8)
        for i, name in enumerate(names):
            frames_u8[i] = _read_frame(self.path / name, self.contract.input.size_hw)
        return frames_u8


def open_bundle(path: str | Path) -> Bundle:
    """Read and verify a bundle: contract, presence and sha256 of every file. Raises BundleError or ContractError."""
    folder = Path(path)
    contract_path = folder / CONTRACT_FILE
    if not os.path.isdir(folder):
        raise BundleError(f"{folder}: no such bundle folder", remedy=_NAME_A_BUNDLE)
    _check_is_file(contract_path, _NAME_A_BUNDLE)
    try:
        with contract_path.open("rb") as f:
            data = f.read(_MAX_CONTRACT_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"{contract_path}: cannot be read ({exc.strerror})", remedy=_NAME_A_BUNDLE) from exc
    if len(data) > _MAX_CONTRACT_BYTES:
        raise BundleError(f"{contract_path}: larger than 1 MiB, not a contract", remedy=_EXPORT_AGAIN)
    contract = decode_contract(data, contract_path)
    for name, expected in contract.files.items():
        _verify(folder, name, expected)
    return Bundle(folder, contract)


def _verify(folder: Path, name: str, expected_sha256: str) -> None:
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BundleError(f"{path}: is a link out of the bundle", remedy=_EXPORT_AGAIN)
    _check_is_file(path, _EXPORT_AGAIN)
    try:
        actual = sha256_of_file(path)
    except OSError as exc:
        raise BundleError(f"{path}: cannot be read ({exc.strerror})", remedy=_EXPORT_AGAIN) from exc
    if actual != expected_sha256:
        raise BundleError(
            f"{path}: altered or incomplete (sha256 {actual[:12]}…, the contract says {expected_sha256[:12]}…)",
            remedy=_EXPORT_AGAIN,
        )


def _read_frame(path: Path, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        frame_bgr_u8 = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as exc:
        raise BundleError(f"{path}: cannot be read ({exc})", remedy=_EXPORT_AGAIN) from exc
    if frame_bgr_u8 is not None and frame_bgr_u8.ndim == 2:  # of a grey camera: stored in half the bytes
        frame_bgr_u8 = cv2.cvtColor(frame_bgr_u8, cv2.COLOR_GRAY2BGR)
    expected = (*size_hw, 3)
    if frame_bgr_u8 is None or frame_bgr_u8.shape != expected or frame_bgr_u8.dtype != np.uint8:
        got = "no picture" if frame_bgr_u8 is None else f"{frame_bgr_u8.dtype} {frame_bgr_u8.shape}"
        raise BundleError(f"{path}: expected uint8 {expected}, got {got}", remedy=_EXPORT_AGAIN)
    return cv2.cvtColor(frame_bgr_u8, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _check_is_file(path: Path, remedy: str) -> None:
    """A folder cannot be read, and opening a named pipe would wait for ever."""
    if not os.path.isfile(path):
        raise BundleError(f"{path}: {'is not a file' if os.path.exists(path) else 'is missing'}", remedy=remedy)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
