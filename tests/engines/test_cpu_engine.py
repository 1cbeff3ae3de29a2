"""`rdedge engine --backend openvino`: what it measures, when it refuses; nothing runs below FP32 without it."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from engine_graphs import SIZE_HW
from numpy.typing import NDArray

from rdedge import Inspector
from rdedge.backends import Prediction, open_backend
from rdedge.backends.openvino import OpenVinoBackend, proof_key
from rdedge.board.machine import processor_name
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.cpu_proof import ProofKey, proof_path, read_proof
from rdedge.errors import BackendError
from rdedge_export import cpu_engine, selftest_engine

Refused = Callable[..., str]
FRAME = np.full((1, *SIZE_HW, 3), 200, np.uint8)


def measure(bundle: Path, precision: str = "int8", *options: str) -> int:
    return main(["engine", str(bundle), "--backend", "openvino", "--precision", precision, *options])


def only_proof(bundle: Path) -> Path:
    (path,) = (bundle / "engines").glob("*.json")
    return path


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_tells_distance_time_and_threshold_and_then_the_line_runs(
    engine_bundle: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    assert measure(engine_bundle, precision) == 0
    path = only_proof(engine_bundle)
    told = capsys.readouterr().out
    assert told.startswith(f"measured {path}\n")
    assert "  map cosine to FP32 0.99" in told or "  map cosine to FP32 1.0000" in told
    assert ", 0 of 6 verdicts flip\n" in told and " ms a call (median), ONNX Runtime in FP32 " in told
    assert told.endswith(f"--backend openvino --precision {precision} --source FOLDER_OR_VIDEO\n")
    bundle = open_bundle(engine_bundle)
    proof = read_proof(bundle, proof_key(bundle, precision))  # type: ignore[arg-type]
    assert proof.frames == 6 and proof.median_ms > 0 and proof.onnxruntime_fp32_median_ms > 0
    with Inspector.open(engine_bundle, backend="openvino", precision=precision) as inspector:  # type: ignore[arg-type]
        assert inspector.threshold == proof.image_threshold.value != bundle.precision_spec("fp32").image_threshold.value
        assert inspector.inspect(np.full((*SIZE_HW, 3), 10, np.uint8)).is_anomalous


@pytest.mark.parametrize("fp32_ms", [0.0, 1e9])
def test_it_says_whether_it_pays(
    engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fp32_ms: float
) -> None:
    measured = cpu_engine._measure
    results = iter([fp32_ms, None])  # FP32 in ONNX Runtime comes first

    def timed(*arguments: Any) -> object:
        result, ms = measured(*arguments), next(results)
        return result if ms is None else replace(result, median_ms=ms)

    monkeypatch.setattr(cpu_engine, "_measure", timed)
    assert measure(engine_bundle) == 0
    assert ("nothing is gained here" in capsys.readouterr().out) == (fp32_ms == 0.0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_below_fp32_nothing_runs_that_was_not_measured(
    engine_bundle: Path, refused: Refused, tmp_path: Path, precision: str
) -> None:
    (tmp_path / "parts").mkdir()
    err = refused(
        "run", engine_bundle, "--source", tmp_path / "parts", "--backend", "openvino", "--precision", precision
    )
    assert f"{precision} was not measured with OpenVINO " in err
    assert f"measure it here with `rdedge engine {engine_bundle} --precision {precision} --backend openvino`" in err


def test_fp32_needs_no_measurement(engine_bundle: Path, refused: Refused) -> None:
    backend = open_backend(open_bundle(engine_bundle), backend="openvino")
    assert backend.thresholds is None and backend.infer(FRAME).score == pytest.approx(55 / 255, abs=1e-6)
    backend.close()
    assert "fp32 needs no measurement for OpenVINO" in refused("engine", engine_bundle, "--backend", "openvino")


def test_if_needed_keeps_what_holds(engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(engine_bundle) == 0
    before = only_proof(engine_bundle).read_bytes()
    capsys.readouterr()
    assert measure(engine_bundle, "int8", "--if-needed") == 0
    assert capsys.readouterr().out.startswith("kept ") and only_proof(engine_bundle).read_bytes() == before
    only_proof(engine_bundle).write_bytes(before.replace(b'"flipped": 0', b'"flipped": 1'))
    assert measure(engine_bundle, "int8", "--if-needed") == 0
    assert capsys.readouterr().out.startswith("measured ")


def answering(change: Callable[[Prediction], Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's answers go through ``change``."""
    infer = OpenVinoBackend.infer
    monkeypatch.setattr(OpenVinoBackend, "infer", lambda self, frame_u8: change(infer(self, frame_u8)))


def noisy(prediction: Prediction) -> Prediction:
    noise = np.random.default_rng(0).normal(0.0, 0.3, prediction.anomaly_map.shape).astype(np.float32)
    return Prediction(anomaly_map=prediction.anomaly_map + noise, score=prediction.score)


def nan(prediction: Prediction) -> Prediction:
    return Prediction(anomaly_map=prediction.anomaly_map, score=prediction.score * np.float32("nan"))


@pytest.mark.parametrize(
    ("change", "says"),
    [(noisy, r"too far from FP32: map cosine 0\."), (nan, "int8 with OpenVINO answers NaN or infinity")],
)
def test_a_wrong_engine_is_refused_and_leaves_the_older_proof(
    engine_bundle: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Prediction], says: str
) -> None:
    assert measure(engine_bundle) == 0
    before = only_proof(engine_bundle).read_bytes()
    answering(change, monkeypatch)
    bundle = open_bundle(engine_bundle)
    with pytest.raises(BackendError, match=says + r".*; nothing was written; use FP32, or --backend onnxruntime"):
        cpu_engine.prove(bundle, "int8", if_needed=False, say=print)
    assert only_proof(engine_bundle).read_bytes() == before


def test_it_waits_for_another_build_or_measurement(engine_bundle: Path) -> None:
    """Times taken beside it would mislead, and it sweeps away what killed builds left half-written."""
    folder, waits = engine_bundle / "engines", threading.Event()
    folder.mkdir()
    (folder / ".int8.json.partial-killed").write_text("half")
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=cpu_engine.prove,
            args=(open_bundle(engine_bundle), "int8"),
            kwargs={"if_needed": False, "say": lambda text: waits.set()},
        )
        thread.start()
        assert waits.wait(60) and not list(folder.glob("*.json"))
    thread.join(60)
    assert only_proof(engine_bundle).is_file() and sorted(path.name for path in folder.glob(".*")) == [".lock"]


@pytest.mark.parametrize(
    ("architecture", "processor", "remedy"),
    [
        ("x86_64", "Old", "INT8 products saturate"),
        (
            "x86_64",
            "Core (avx2)",
            "without VNNI or AMX, which this processor has not, OpenVINO's sums of INT8 products saturate",
        ),
        ("x86_64", "Xeon (avx2, avx512f)", "INT8 products saturate"),
        ("x86_64", "Xeon (avx2, avx512f, avx512_vnni)", "report this processor and version"),
        ("aarch64", "Jetson AGX Orin (asimddp, i8mm)", "report this processor and version"),
    ],
)
def test_why_it_is_far_from_fp32_is_told_where_it_is_known(
    engine_bundle: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, processor: str, remedy: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr("rdedge.backends.openvino.processor_name", lambda: processor)
    answering(noisy, monkeypatch)
    with pytest.raises(BackendError, match=rf"on this {re.escape(processor)} is too far from FP32.*{remedy}$"):
        cpu_engine.prove(open_bundle(engine_bundle), "int8", if_needed=False, say=print)


def test_flipped_verdicts_are_refused(engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps as they should be, but scores in another order: with thresholds at the median, other parts are rejected."""

    def median(maps: NDArray[np.float32], scores: NDArray[np.float32], *_: object) -> object:
        limit = open_bundle(engine_bundle).precision_spec("fp32").image_threshold
        return msgspec.structs.replace(limit, value=float(np.median(scores))), limit

    monkeypatch.setattr(cpu_engine, "fit_thresholds", median)
    answering(lambda p: Prediction(anomaly_map=p.anomaly_map, score=1.0 - p.score), monkeypatch)
    with pytest.raises(BackendError, match=r"[4-6] of 6 verdicts flip"):
        cpu_engine.prove(open_bundle(engine_bundle), "int8", if_needed=False, say=print)
    assert not list((engine_bundle / "engines").glob("*.json"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data.replace(b'"flipped": 0', b'"flipped": 1'), "was changed since it was written"),
        (lambda data: data[: len(data) // 2], "is not what `rdedge engine` wrote"),
        (lambda data: b"\xff" + data, "is not what `rdedge engine` wrote"),
        (lambda data: data.replace(b'"frames"', b'"frame"'), "is not what `rdedge engine` wrote"),
    ],
    ids=["altered", "truncated", "foreign", "unknown-key"],
)
def test_a_damaged_proof_is_refused(engine_bundle: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    assert measure(engine_bundle) == 0
    path = only_proof(engine_bundle)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BackendError, match=says):
        open_backend(open_bundle(engine_bundle), backend="openvino", precision="int8")


@pytest.mark.parametrize("field", ["version", "processor", "onnx_sha256"])
def test_the_proof_of_another_machine_or_graph_is_none(engine_bundle: Path, field: str) -> None:
    """Also where it was given the name that this machine's would have."""
    assert measure(engine_bundle) == 0
    bundle = open_bundle(engine_bundle)
    other = msgspec.structs.replace(proof_key(bundle, "int8"), **{field: "0" * 64})
    with pytest.raises(BackendError, match="int8 was not measured with OpenVINO"):
        read_proof(bundle, other)
    only_proof(engine_bundle).rename(proof_path(bundle, other))
    with pytest.raises(BackendError, match="is of another machine or graph"):
        read_proof(bundle, other)


def test_a_precision_of_this_bundle_only(engine_bundle: Path) -> None:
    """FP16's measurement says nothing of INT8."""
    assert measure(engine_bundle, "fp16") == 0
    with pytest.raises(BackendError, match="int8 was not measured"):
        open_backend(open_bundle(engine_bundle), backend="openvino", precision="int8")


def test_the_file_is_readable_by_others_and_holds_no_path(engine_bundle: Path) -> None:
    assert measure(engine_bundle) == 0
    path = only_proof(engine_bundle)
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 and str(engine_bundle) not in path.read_text()
    assert json.loads(path.read_bytes())["key"]["precision"] == "int8"


@pytest.mark.parametrize("option", [("--dla", "0"), ("--workspace-mb", "100")], ids=" ".join)
def test_options_of_tensorrt_are_refused(engine_bundle: Path, refused: Refused, option: tuple[str, str]) -> None:
    err = refused("engine", engine_bundle, "--backend", "openvino", "--precision", "int8", *option)
    assert "--dla and --workspace-mb are TensorRT's; leave them out" in err


def test_the_selftest_measures_what_is_not_yet_measured(
    engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))  # this machine is shared
    assert main(["selftest", str(engine_bundle), "--backend", "openvino", "--seconds", "0.05"]) == 0
    names = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("pass")]
    assert names[:8] == ["fp32 answers", "fp32 pace"] + [
        f"{precision} {part}" for precision in ("fp16", "int8") for part in ("distance", "answers", "pace")
    ]
    answering(nan, monkeypatch)
    assert main(["selftest", str(engine_bundle), "--backend", "openvino", "--seconds", "0.05"]) == 2


CPUINFO = {
    "model name\t: Xeon\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: Xeon\n": "Xeon (avx2, avx512_vnni)",
    "model name\t: Old\nflags\t\t: fpu sse2\n": "Old",
    "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n": "Jetson AGX Orin (asimddp, i8mm)",
}


@pytest.mark.parametrize("cpuinfo", CPUINFO, ids=CPUINFO.values())
def test_the_processor_is_named_with_what_kernels_are_chosen_by(tmp_path: Path, cpuinfo: str) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    if "model name" not in cpuinfo:
        (tmp_path / "proc/device-tree/model").write_text("Jetson AGX Orin\0")
    assert processor_name(tmp_path) == CPUINFO[cpuinfo]


def test_a_machine_that_tells_nothing_has_a_name_too(tmp_path: Path) -> None:
    assert processor_name(tmp_path)
    key = ProofKey(version="1", processor=processor_name(tmp_path), precision="int8", onnx_sha256="0" * 64)
    assert key.name.startswith("int8-openvino-")
