"""`rdedge engine` from the command to the files: keys, checks, refusals, and two builds at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import msgspec
import numpy as np
import pytest

from rdedge.backends import open_backend
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.engines import EngineRecord
from rdedge.errors import BackendError, MissingExtraError
from rdedge_export.engine_build import build_engine


@pytest.fixture
def tensorrt(install_tensorrt: Any) -> Any:
    """TensorRT 10.3, the Jetson's."""
    return install_tensorrt("10.3.0")


def files_of(bundle: Path) -> set[str]:
    folder = bundle / "engines"
    return {path.suffix for path in folder.iterdir() if path.name != ".lock"} if folder.exists() else set()


WHOLE = {".engine", ".json", ".timing"}


def test_the_command_builds_checks_and_says_so(
    trt: Any, engine_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    flavour = "tensorrt-rtx" if trt.fake.is_rtx else "tensorrt"
    arguments = ["engine", str(engine_bundle), "--precision", "int8", "--backend", flavour, "--workspace-mb", "512"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"built {engine_bundle}/engines/int8-{flavour}-{trt.fake.version}-sm86-")
    assert f"{flavour} {trt.fake.version} on nullcuda (no GPU) (SM 8.6)" in out and "2 int8" in out
    assert "within 0.00% of ONNX Runtime's map and 0.00% of its score on 6 good parts (allowed 25% of" in out
    assert f"next: rdedge run {engine_bundle} --backend {flavour} --precision int8 --source" in out
    assert ("Building engine: 3 of 3" in err) == ("IProgressMonitor" in trt.fake.surface["classes"])
    record = json.loads(next((engine_bundle / "engines").glob("*.json")).read_text())
    assert record["key"]["workspace_mb"] == 512 and record["check"]["frames"] == 6
    assert record["layer_precisions"]["Conv body"] == "int8"
    assert record["layer_precisions"]["Sub anomaly_map"] == "fp32"
    assert files_of(engine_bundle) == WHOLE - ({".timing"} if trt.fake.is_rtx else set())
    builds = trt.fake.builds
    assert main([*arguments, "--if-needed"]) == 0
    assert trt.fake.builds == builds and capsys.readouterr().out.startswith("kept ")
    assert main([*arguments[:-1], "256", "--if-needed"]) == 0, "other options are another engine"
    assert trt.fake.builds > builds and capsys.readouterr().out.startswith("built ")


def test_the_line_runs_the_engine_with_its_own_threshold(
    tensorrt: Any, engine_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    (tmp_path / "parts").mkdir()
    cv2.imwrite(str(tmp_path / "parts" / "good.png"), np.full((32, 48, 3), 200, np.uint8))
    cv2.imwrite(str(tmp_path / "parts" / "worse.png"), np.full((32, 48, 3), 150, np.uint8))
    assert main(["engine", str(engine_bundle)]) == 0
    command = ["run", str(engine_bundle), "--source", str(tmp_path / "parts")]
    assert main(command) == 0
    assert "2 parts: 2 good, 0 rejected" in capsys.readouterr().out, "the contract's threshold is 0.5"
    assert main([*command, "--backend", "tensorrt"]) == 0
    assert "2 parts: 1 good, 1 rejected" in capsys.readouterr().out, "refitted on brighter calibration frames"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_that_is_fp32_after_all_is_an_error(
    tensorrt: Any, engine_bundle: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorrt.fake.runs_in = "FLOAT"
    assert main(["engine", str(engine_bundle), "--precision", precision]) == 2
    assert f"asked to be {precision}, but of its " in capsys.readouterr().err
    assert files_of(engine_bundle) == set()


@pytest.mark.parametrize("offset", [0.5, float("nan"), float("inf")])
def test_an_engine_that_answers_otherwise_is_not_written(
    tensorrt: Any, build: Any, engine_bundle: Path, offset: float
) -> None:
    tensorrt.fake.map_offset = offset
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(BackendError, match=r"the fp32 engine of tensorrt 10\.3\.0 differs"),
    ):
        build()
    assert files_of(engine_bundle) == set()


def test_what_is_missing_is_said_before_the_build(tensorrt: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rdedge\[cpu\]'"):
        build()
    assert tensorrt.fake.builds == 0


def test_a_workspace_of_nothing_is_refused(engine_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", str(engine_bundle), "--workspace-mb", "0"]) == 2
    assert "--workspace-mb 0; give a number of megabytes" in capsys.readouterr().err


def test_a_timing_cache_that_broke_is_replaced(tensorrt: Any, build: Any, engine_bundle: Path) -> None:
    build()
    cache = next((engine_bundle / "engines").glob("*.timing"))
    whole = cache.read_bytes()
    cache.write_bytes(b"broken")
    build()
    assert cache.read_bytes() == whole == b"FAKECACHE 10.3.0"


def test_two_builds_at_once_are_one(tensorrt: Any, engine_bundle: Path) -> None:
    begun, said = threading.Event(), threading.Event()
    tensorrt.fake.build_hook = lambda: (begun.set(), said.wait(120))
    results: list[tuple[EngineRecord, bool]] = []

    def build_one(say: Any) -> None:
        results.append(
            build_engine(
                open_bundle(engine_bundle),
                "fp32",
                "tensorrt",
                workspace_mb=None,
                if_needed=False,
                progress=lambda *step: None,
                say=say,
            )
        )

    first = threading.Thread(target=build_one, args=(lambda text: None,))
    first.start()
    assert begun.wait(120)
    second = threading.Thread(target=build_one, args=(lambda text: said.set(),))
    second.start()
    first.join(300)
    second.join(300)
    assert said.is_set() and tensorrt.fake.builds == 1
    assert sorted(was_built for _, was_built in results) == [False, True]
    assert results[0][0] == results[1][0]


KILLED = """
import os, signal, sys
from fake_tensorrt import make_module
sys.modules["tensorrt"] = make_module("10.3.0")
import rdedge.atomic, rdedge.engines
real = os.replace
def replace(source, target):
    if str(target).endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
from rdedge.cli import main
main(["engine", sys.argv[1]])
"""


@pytest.mark.parametrize("at", [".engine", ".json"])
def test_a_killed_build_leaves_nothing_that_could_be_run(
    tensorrt: Any, build: Any, engine_bundle: Path, at: str
) -> None:
    build()  # there is an older engine, too
    paths = [str(Path(os.environ["RDEDGE_STANDIN"]) / "site"), str(Path(__file__).parents[1]), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("NULLCUDA_REPORT", None)
    done = subprocess.run([sys.executable, "-c", KILLED, str(engine_bundle), at], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list((engine_bundle / "engines").glob(".*partial*"))
    with pytest.raises(BackendError, match=r"has no fp32 engine .*; build it here with `rdedge engine"):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
    build(if_needed=True)
    assert not list((engine_bundle / "engines").glob(".*partial*"))
    open_backend(open_bundle(engine_bundle), backend="tensorrt").close()


@pytest.mark.parametrize("place", ["at once", "in the engine", "in the record"])
def test_a_full_disk_leaves_nothing_half_written(
    tensorrt: Any, build: Any, engine_bundle: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build()
    engine_bytes = engine_file(engine_bundle).stat().st_size
    assert engine_bytes + 1 < record_file(engine_bundle).stat().st_size
    shutil.rmtree(engine_bundle / "engines")
    size = {"at once": 0, "in the engine": engine_bytes - 1, "in the record": engine_bytes + 1}[place]
    soft, hard = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (size, hard))
    try:
        code = main(["engine", str(engine_bundle)])
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    suffix = "json" if place == "in the record" else "engine"
    assert code == 2 and "File too large; check the path, its permissions and the disk's space" in err
    assert f"error: {engine_bundle}/engines/fp32-tensorrt-10.3.0-sm86-" in err and f".{suffix}: File" in err
    assert files_of(engine_bundle) == set()


def alter(path: Path, change: Any) -> None:
    path.write_bytes(change(path.read_bytes()))


def with_key(bundle: Path, **changes: Any) -> None:
    """As if an engine of another machine had been copied here and renamed, record and all."""
    from rdedge.sealed import sealed

    path = next((bundle / "engines").glob("*.json"))
    record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    record = msgspec.structs.replace(record, key=msgspec.structs.replace(record.key, **changes))
    path.write_bytes(msgspec.json.encode(sealed(record)))


def engine_file(bundle: Path) -> Path:
    return next((bundle / "engines").glob("*.engine"))


def record_file(bundle: Path) -> Path:
    return next((bundle / "engines").glob("*.json"))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HOSTILE: dict[str, tuple[Any, str]] = {
    "no engines folder": (lambda b: shutil.rmtree(b / "engines"), "has no fp32 engine for tensorrt"),
    "engine missing": (lambda b: engine_file(b).unlink(), "is missing"),
    "engine empty": (lambda b: engine_file(b).write_bytes(b""), "has 0 bytes, was built with"),
    "engine truncated": (lambda b: alter(engine_file(b), lambda d: d[:-1]), r"has \d+ bytes, was built with"),
    "engine longer": (lambda b: alter(engine_file(b), lambda d: d + b"x"), r"has \d+ bytes, was built with"),
    "engine altered": (lambda b: alter(engine_file(b), lambda d: d[:-1] + b"?"), "was altered after the build"),
    "engine is a folder": (lambda b: make_folder(engine_file(b)), "is missing"),
    "engine is a pipe": (lambda b: make_pipe(engine_file(b)), "is missing"),
    "record missing": (lambda b: record_file(b).unlink(), "has no fp32 engine"),
    "record empty": (lambda b: record_file(b).write_bytes(b""), "is not what `rdedge engine` wrote"),
    "record truncated": (lambda b: alter(record_file(b), lambda d: d[:-9]), "is not what `rdedge engine` wrote"),
    "record no text": (lambda b: record_file(b).write_bytes(b"\xff\xfe"), "is not what `rdedge engine` wrote"),
    "record nested": (lambda b: record_file(b).write_bytes(b"[" * 100000), "is not what `rdedge engine` wrote"),
    "record huge": (lambda b: record_file(b).write_bytes(b" " * (5 << 20)), "is not what `rdedge engine` wrote"),
    "record with another key": (
        lambda b: alter(record_file(b), lambda d: d.replace(b'"build_s"', b'"built_s"')),
        "is not what `rdedge engine` wrote",
    ),
    "record of a later schema": (
        lambda b: alter(record_file(b), lambda d: d.replace(b'"schema_version": 1', b'"schema_version": 2')),
        "is not what `rdedge engine` wrote",
    ),
    "threshold edited": (
        lambda b: alter(record_file(b), lambda d: d.replace(b'"parts": 6', b'"parts": 7')),
        "was changed since it was written",
    ),
    "record is a pipe": (lambda b: make_pipe(record_file(b)), "has no fp32 engine"),
    "of another TensorRT": (lambda b: with_key(b, version="10.7.0"), r"is for TensorRT 10\.7\.0, wanted 10\.3\.0"),
    "of another GPU": (lambda b: with_key(b, gpu="Orin"), r"is for GPU Orin \(SM 8\.6\), wanted nullcuda"),
    "of another SM": (lambda b: with_key(b, compute_capability="8.7"), r"\(SM 8\.7\), wanted nullcuda .* \(SM 8\.6\)"),
    "of another graph": (lambda b: with_key(b, onnx_sha256="a" * 64), "is for graph aaaaaaaaaaaa, wanted"),
    "of another precision": (lambda b: with_key(b, precision="fp16"), "is for precision fp16, wanted fp32"),
    "of another library": (lambda b: with_key(b, flavour="tensorrt-rtx"), "is for library tensorrt-rtx, wanted"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_engine_is_refused_with_the_command_that_rebuilds(
    tensorrt: Any, build: Any, engine_bundle: Path, kind: str
) -> None:
    build()
    damage, message = HOSTILE[kind]
    damage(engine_bundle)
    remedy = f"build it here with `rdedge engine {engine_bundle} --precision fp32 --backend tensorrt`"
    with pytest.raises(BackendError, match=message) as caught:
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
    assert caught.value.remedy == remedy
    for path in (engine_bundle / "engines").glob("*.json"):
        if path.is_fifo():
            path.unlink()
    for path in (engine_bundle / "engines").glob("*.engine"):
        if path.is_dir():
            path.rmdir()
    build(if_needed=True)
    open_backend(open_bundle(engine_bundle), backend="tensorrt").close()


def test_after_an_update_of_tensorrt_the_message_says_so(
    tensorrt: Any, build: Any, engine_bundle: Path, install_tensorrt: Any
) -> None:
    build()
    install_tensorrt("10.13.3")
    with pytest.raises(
        BackendError, match=r"has no fp32 engine for tensorrt 10\.13\.3 .*, only one for TensorRT 10\.3\.0"
    ):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")


def test_an_engine_the_library_refuses_is_refused(tensorrt: Any, build: Any, engine_bundle: Path) -> None:
    build()
    tensorrt.fake.version = "10.3.0 of another build"  # which its __version__ does not tell
    with pytest.raises(
        BackendError, match=r"tensorrt refuses the engine \(the engine plan file is not compatible .*build it"
    ):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_library_names_its_extra(engine_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}[name]
    with pytest.raises(MissingExtraError, match=rf"cannot be loaded \(.*\); pip install 'rdedge\[{extra}\]'"):
        open_backend(open_bundle(engine_bundle), backend=name.replace("_", "-"))  # type: ignore[arg-type]


def test_missing_pycuda_is_said(tensorrt: Any, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(
        MissingExtraError, match=r"pycuda cannot be loaded .*; install the NVIDIA driver and `pip install"
    ):
        open_backend(open_bundle(engine_bundle), backend="tensorrt")
