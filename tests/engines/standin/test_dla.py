"""`rdedge engine --dla` and the run after it: keys that do not collide, what landed where, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rdedge.backends import open_backend
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.engines import newest_engine
from rdedge.errors import BackendError

NODE = "{ForeignNode[Mul x...Conv body]}"


@pytest.fixture
def orin(install_tensorrt: Any) -> Any:
    """TensorRT 10.3 on a board with two DLA cores."""
    trt = install_tensorrt("10.3.0")
    trt.fake.dla_cores = 2
    return trt


def engine(bundle: Path, *more: str) -> list[str]:
    return ["engine", str(bundle), "--precision", "fp16", *more]


def names(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").glob("*.engine"))


def test_the_command_says_what_landed_where(orin: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(engine(engine_bundle, "--dla", "1")) == 0
    out = capsys.readouterr().out
    assert "layers of the engine (several of the network may be one): 1 on DLA core 1, 6 fell back to the GPU" in out
    assert f"DLA  fp16   {NODE}\n" in out and "GPU  fp32   Sub anomaly_map\n" in out
    assert f"rdedge run {engine_bundle} --backend tensorrt-dla1 --precision fp16 --source" in out
    record = json.loads(next((engine_bundle / "engines").glob("*.json")).read_text())
    assert record["dla_layers"] == [NODE] and record["key"]["dla_core"] == 1
    assert set(record["layer_precisions"]) > {NODE, "Sub anomaly_map"} and not record["is_strongly_typed"]


def test_engines_of_the_gpu_and_of_each_core_lie_side_by_side(orin: Any, engine_bundle: Path) -> None:
    for more in ([], ["--dla", "0"], ["--dla", "1"]):
        assert main(engine(engine_bundle, *more)) == 0
    on_dla0, on_dla1, on_gpu = (name.removesuffix(".engine") for name in names(engine_bundle))
    assert (on_dla0, on_dla1) == (f"{on_gpu}-dla0", f"{on_gpu}-dla1")
    builds = orin.fake.builds
    for more in ([], ["--dla", "0"], ["--dla", "1"]):
        assert main(engine(engine_bundle, *more, "--if-needed")) == 0
    assert orin.fake.builds == builds
    bundle = open_bundle(engine_bundle)
    newest = newest_engine(bundle, "fp16", "tensorrt")
    assert newest is not None and newest.key.dla_core is None, "a server that serves it has no DLA"
    frame_u8 = np.full((1, 32, 48, 3), 200, np.uint8)
    for name in ("tensorrt", "tensorrt-dla0", "tensorrt-dla1"):
        backend = open_backend(bundle, backend=name, precision="fp16")  # type: ignore[arg-type]
        assert backend.infer(frame_u8).score[0] == pytest.approx(1 - 200 / 255, abs=1e-3)
        backend.close()


def test_the_line_runs_on_dla(
    orin: Any, engine_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "part.png"), np.full((32, 48, 3), 250, np.uint8))
    command = ["run", str(engine_bundle), "--source", str(tmp_path / "part.png"), "--precision", "fp16"]
    assert main([*command, "--backend", "tensorrt-dla0"]) == 2
    assert "has no fp16 engine for tensorrt 10.3.0 on this nullcuda (no GPU), DLA core 0; " in capsys.readouterr().err
    assert main(engine(engine_bundle)) == 0
    assert main([*command, "--backend", "tensorrt-dla0"]) == 2
    err = capsys.readouterr().err
    assert "DLA core 0, only one for running on the GPU alone, wanted DLA core 0" in err
    assert f"rdedge engine {engine_bundle} --precision fp16 --backend tensorrt --dla 0`" in err
    assert main(engine(engine_bundle, "--dla", "0")) == 0
    assert main([*command, "--backend", "tensorrt-dla0"]) == 0
    assert "1 parts: 1 good, 0 rejected" in capsys.readouterr().out


def test_an_engine_renamed_to_that_of_the_other_core_is_refused(orin: Any, engine_bundle: Path) -> None:
    assert main(engine(engine_bundle, "--dla", "0")) == 0
    for path in list((engine_bundle / "engines").glob("*-dla0.*")):
        path.rename(path.with_name(path.name.replace("-dla0", "-dla1")))
    with pytest.raises(BackendError, match="is for running on DLA core 0, wanted DLA core 1; build it here with"):
        open_backend(open_bundle(engine_bundle), backend="tensorrt-dla1", precision="fp16")


REFUSALS = {
    "fp32": (2, ["--precision", "fp32"], "DLA computes in FP16 or INT8, not in FP32; add --precision fp16"),
    "int8 where Q/DQ is not taken": (2, ["--precision", "int8"], "takes no quantise and dequantise nodes in this"),
    "no DLA": (0, [], "no DLA core 1: this TensorRT offers 0 on this device; leave out --dla; Jetson Xavier"),
    "one core": (1, [], "no DLA core 1: this TensorRT offers 1 on this device"),
    "third core": (2, ["--dla", "2"], "argument --dla: invalid choice: 2"),
    "negative core": (2, ["--dla=-1"], "argument --dla: invalid choice: -1"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_dla_is_refused_with_a_remedy(
    orin: Any, engine_bundle: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    orin.fake.dla_cores, more, message = REFUSALS[kind]
    assert main(engine(engine_bundle, "--dla", "1", *more)) == 2
    assert message in capsys.readouterr().err
    assert orin.fake.builds == 0 and names(engine_bundle) == []


def test_rtx_has_no_dla(install_tensorrt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trt = install_tensorrt("tensorrt_rtx-1.7.1")
    assert main(engine(engine_bundle, "--dla", "0", "--backend", "tensorrt-rtx")) == 2
    assert "no DLA core 0: this TensorRT offers 0" in capsys.readouterr().err and trt.fake.builds == 0


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_an_engine_without_a_layer_on_dla_is_an_error(
    install_tensorrt: Any, engine_bundle: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = install_tensorrt(version)
    trt.fake.dla_cores, trt.fake.dla_takes_nothing = 1, True
    assert main(engine(engine_bundle, "--dla", "0")) == 2
    assert "asked to use DLA, but none of its layers runs there; nothing was written" in capsys.readouterr().err
    assert names(engine_bundle) == []


def test_strongly_typed_int8_goes_to_dla(install_tensorrt: Any, engine_bundle: Path) -> None:
    trt = install_tensorrt("11.4.0")
    trt.fake.dla_cores = 1
    assert main(["engine", str(engine_bundle), "--precision", "int8", "--dla", "0"]) == 0
    record = json.loads(next((engine_bundle / "engines").glob("*.json")).read_text())
    assert record["dla_layers"] == ["{ForeignNode[Conv body...Conv body]}"] and record["is_strongly_typed"]
