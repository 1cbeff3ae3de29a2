"""A tiny real model with a known answer, the bundle around it, and parts to show it.

The model is the function of FakeBackend: ``1 - mean(R, G, B) / 255`` at each pixel and its maximum. So a part is
bright, a defect is dark, and every expected score can be written down.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rdedge.cli import main
from rdedge.contract import (
    CONTRACT_FILE,
    CalibrationSpec,
    Contract,
    DataSpec,
    GraphSpec,
    InputSpec,
    ModelSpec,
    PrecisionSpec,
    TensorSpec,
    encode_contract,
    sealed,
)
from rdedge.fidelity import Metrics, Parity
from rdedge.good_parts import QUANTILE_STEPS, Distribution, FrameStatistics, Threshold
from rdedge.images import silence_opencv

SIZE_HW = (48, 64)
GOOD_LEVEL, DARK_LEVEL = 204, 51  # scores 0.2 and 0.8 of a flat picture; the thresholds are 0.5 and 0.4
IMAGE_THRESHOLD, PIXEL_THRESHOLD = 0.5, 0.4

Picture = NDArray[np.uint8]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """FFmpeg reads its log level once in a process, whichever test opens the first video."""
    silence_opencv()


@pytest.fixture(autouse=True)
def _patient_with_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is merely slow is not taken for one that hangs."""
    monkeypatch.setattr("rdedge.sinks.lines._CLOSE_S", 60.0)
    monkeypatch.setattr("rdedge.sinks.held._CLOSE_S", 60.0)


def darkness_graph(size_hw: tuple[int, int], batch: int = 1) -> bytes:
    """The tiny model as ONNX bytes."""
    height, width = size_hw
    constants = {"full": np.float32(255.0), "one": np.float32(1.0), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["mean"], axes=[3], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["brightness"]),
        helper.make_node("Sub", ["one", "brightness"], ["darkness"]),
        helper.make_node("Unsqueeze", ["darkness", "axis"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "darkness",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, height, width, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch, 1, height, width]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def graph_spec(size_hw: tuple[int, int], batch: int = 1) -> GraphSpec:
    """The tensors of ``darkness_graph``."""
    height, width = size_hw
    return GraphSpec(
        opset=17,
        frame=TensorSpec(name="frame", dtype="uint8", shape=(batch, height, width, 3)),
        anomaly_map=TensorSpec(name="anomaly_map", dtype="float32", shape=(batch, 1, height, width)),
        score=TensorSpec(name="score", dtype="float32", shape=(batch,)),
    )


def contract_for(
    files: dict[str, bytes], size_hw: tuple[int, int], roi_xywh: tuple[int, int, int, int] | None, batch: int
) -> Contract:
    """A sealed contract of a bundle with these files; the first is the FP32 graph."""

    def limit(value: float, parts: int, target_rate: float) -> Threshold:
        return Threshold(
            value=value,
            rule="quantile",
            target_rate=target_rate,
            expected_rate=1 / (parts + 1),
            rate_low=0.0,
            rate_high=4 / (parts + 1),
            confidence=0.95,
            parts=parts,
        )

    def spread(value: float) -> Distribution:
        quantiles = tuple(value * (0.9 + 0.2 * step / QUANTILE_STEPS) for step in range(QUANTILE_STEPS + 1))
        return Distribution(samples=99, quantiles=quantiles)

    return sealed(
        Contract(
            schema_version=5,
            created_utc="2026-11-22T08:15:00Z",
            input=InputSpec(size_hw=size_hw, colour_order="rgb", resize="area+linear", roi_xywh=roi_xywh),
            graph=graph_spec(size_hw, batch),
            model=ModelSpec(
                name="darkness",
                teacher_weights="none",
                ocbe="none",
                loss="flattened",
                head="plain",
                parameters=1_500_000,
                weights_sha256="a" * 64,
            ),
            data=DataSpec(
                train_images=20,
                train_sha256="b" * 64,
                held_out_images=99,
                held_out_sha256="c" * 64,
                split="every fifth",
                seed=7,
            ),
            precisions={
                "fp32": PrecisionSpec(
                    file=next(iter(files)),
                    image_threshold=limit(IMAGE_THRESHOLD, 99, 0.01),
                    pixel_threshold=limit(PIXEL_THRESHOLD, 99, 0.001),
                    good_scores=spread(0.2),
                    parity=Parity(frames=4, max_abs_map=2e-6, p999_abs_map=1e-6, max_abs_score=1e-6, tolerance=1e-4),
                    metrics=Metrics(
                        images=30,
                        image_auroc=0.987,
                        pixel_auroc=None,
                        au_pro=None,
                        false_reject_rate=0.05,
                        miss_rate=0.1,
                    ),
                    gate=None,
                )
            },
            good_frames=FrameStatistics(brightness=spread(203.0), contrast=spread(10.0), sharpness=spread(5.0)),
            calibration=CalibrationSpec(frames=sum(name.startswith("calibration/") for name in files)),
            files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            versions={"rdedge": "0.1.0", "torch": "2.14.1"},
            contract_sha256="0" * 64,
        )
    )


def png_of(level: int, size_hw: tuple[int, int]) -> bytes:
    """A picture whose red is ``level``, green one less, blue two less."""
    rgb_u8 = np.full((*size_hw, 3), (level, level - 1, level - 2), np.uint8)
    return cv2.imencode(".png", rgb_u8[..., ::-1])[1].tobytes()


WriteBundle = Callable[..., Path]


@pytest.fixture
def write_bundle(tmp_path: Path) -> WriteBundle:
    """Writes a valid bundle and returns its folder."""

    def write(
        name: str = "bundle",
        *,
        size_hw: tuple[int, int] = SIZE_HW,
        roi_xywh: tuple[int, int, int, int] | None = None,
        batch: int = 1,
        graph: bytes | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        files = {
            "model.onnx": graph or darkness_graph(size_hw, batch),
            "report.html": b"<html>report</html>\n",
            "calibration/000.png": png_of(GOOD_LEVEL, size_hw),
            "calibration/001.png": png_of(GOOD_LEVEL - 1, size_hw),
        }
        (folder / "calibration").mkdir()
        for file_name, data in files.items():
            (folder / file_name).write_bytes(data)
        (folder / CONTRACT_FILE).write_bytes(encode_contract(contract_for(files, size_hw, roi_xywh, batch)))
        return folder

    return write


@pytest.fixture
def bundle(write_bundle: WriteBundle) -> Path:
    return write_bundle()


@pytest.fixture
def graph() -> GraphSpec:
    return graph_spec(SIZE_HW)


@pytest.fixture
def reseal() -> Callable[[dict[str, object]], bytes]:
    """contract.json of a contract that was edited by someone who also repaired its hash."""

    def encode(contract: dict[str, object]) -> bytes:
        data = msgspec.json.encode(contract | {"contract_sha256": "0" * 64})
        return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())

    return encode


DrawPart = Callable[..., Picture]


@pytest.fixture
def draw_part() -> DrawPart:
    """A flat bright part, with a dark square of 8 x 8 at (x, y) if asked."""

    def draw(defect_xy: tuple[int, int] | None = None, size_hw: tuple[int, int] = SIZE_HW) -> Picture:
        picture = np.full((*size_hw, 3), GOOD_LEVEL, np.uint8)
        if defect_xy is not None:
            x, y = defect_xy
            picture[y : y + 8, x : x + 8] = DARK_LEVEL
        return picture

    return draw


@pytest.fixture
def parts(tmp_path: Path, draw_part: DrawPart) -> Path:
    """A folder with two good parts and a bad one in between."""
    folder = tmp_path / "parts"
    (folder / "scratch").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), draw_part())
    cv2.imwrite(str(folder / "scratch" / "b.png"), draw_part((16, 24)))
    cv2.imwrite(str(folder / "z.png"), draw_part())
    return folder


WriteVideo = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Writes flat grey frames of these levels, 25 a second."""

    def write(name: str, codec: str, levels: list[int]) -> Path:
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25.0, SIZE_HW[::-1])
        assert writer.isOpened(), f"this OpenCV cannot write {codec} in {name}"
        for level in levels:
            writer.write(np.full((*SIZE_HW, 3), level, np.uint8))
        writer.release()
        return path

    return write


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail: exit code 2, exactly one line on stderr, which is returned, none on stdout."""

    def run(*arguments: object, prints: bool = False) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        captured = capfd.readouterr()
        assert captured.err.startswith("rdedge: error: ")
        assert captured.err.endswith("\n") and captured.err.count("\n") == 1, captured.err
        assert bool(captured.out) == prints
        return captured.err

    return run


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> RunPython:
    """Runs Python code in a new process."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | environment,
        )

    return run
