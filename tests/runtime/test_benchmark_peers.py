"""The benchmark beside the peers: each subject in its own process, maps compared, collapses named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import openvino_kernels
from peers import environments
from peers.environments import make_environment
from peers.measure import Measured, Subject, measure, table
from training_speed import curve_rows, seconds_to


def test_subjects_run_in_turn_in_processes_of_their_own(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "frame.npy", rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    np.save(tmp_path / "small.npy", rng.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8))
    shared = {"frame": str(tmp_path / "frame.npy"), "small_frames": str(tmp_path / "small.npy")}
    subjects = [
        Subject(name, Path(sys.executable), {"kind": "rdedge", "bundle": str(bundle)} | more, is_reference=not index)
        for index, (name, more) in enumerate(
            {
                "a": {"backend": "onnxruntime"},
                "b": {"backend": "openvino"},
                "c": {"graph": str(bundle / "model.onnx")},  # as the INT8 graph is run
            }.items()
        )
    ]
    measured = measure(subjects, tmp_path / "work", shared, rounds=4)
    assert [len(one.times_ms) for one in measured.values()] == [4, 4, 4]
    assert all(20 < one.peak_mb < 400 and one.first_s > 0.05 and min(one.times_ms) > 0 for one in measured.values())
    small = np.load(tmp_path / "small.npy")
    for one in measured.values():
        np.testing.assert_allclose(one.maps, 1.0 - small.mean(axis=3) / 255.0, atol=1e-6)


def test_a_subject_that_fails_is_named(tmp_path: Path) -> None:
    subject = Subject("broken", Path(sys.executable), {"kind": "rdedge", "bundle": str(tmp_path), "backend": "fake"})
    with pytest.raises(SystemExit, match=r"(?s)broken ended with exit code 1:.*contract.json: is missing"):
        measure([subject], tmp_path / "work", {"frame": "", "small_frames": ""}, rounds=1)


def test_the_table_says_what_a_map_is_worth() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 8, 8), dtype=np.float32)
    names = {"reference": maps, "near": maps + 1e-4, "far": maps + rng.random(maps.shape, dtype=np.float32) / 4}
    names["flat"] = np.ones_like(maps)
    subjects = [Subject(name, Path(), {}, is_reference=name == "reference") for name in names]
    measured = {name: Measured(one, 1.0, [10.0, 20.0, 40.0], 99.0) for name, one in names.items()}
    measured["near"].times_ms = [5.0, 5.0, 10.0]
    rows = dict(zip(names, table(subjects, measured, "reference")[2:], strict=True))
    assert "| 20.0 |" in rows["reference"] and "| reference |" in rows["reference"]
    assert "| 5.0 |" in rows["near"] and "| 4.00 (2.20 to 4.00) |" in rows["near"] and "| 1.0000 |" in rows["near"]
    assert "beyond the gate's budget" in rows["far"] and "collapsed" not in rows["far"]
    assert "0.0000 collapsed" in rows["flat"]


def test_an_environment_once_made_is_used_again(tmp_path: Path) -> None:
    made = make_environment(tmp_path / "venv", ["--no-deps", "--no-index", str(wheel(tmp_path))], [], "import tiny", 1)
    assert 0.0 < made.less_cuda_mb < made.size_mb and made.import_s > 0
    (tmp_path / "tiny-1-py3-none-any.whl").unlink()
    again = make_environment(tmp_path / "venv", ["absent"], [], "import tiny", 1)
    assert (again.size_mb, again.less_cuda_mb) == (made.size_mb, made.less_cuda_mb)


def test_our_own_package_in_it_is_this_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOT", wheel(tmp_path))
    for _ in range(2):
        made = make_environment(tmp_path / "venv", [str(environments.ROOT)], [], "import tiny", 1)
        (module,) = (tmp_path / "venv").rglob("tiny/__init__.py")
        assert module.read_text() == "" and made.import_s > 0
        module.write_text("raise SystemExit('of another tree')")


def wheel(folder: Path) -> Path:
    """A package with a module, and a library that only a GPU needs."""
    import zipfile

    path = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny/__init__.py", "")
        file.writestr("tiny/lib/libtiny_cuda.so", b"x" * 5_000_000)
        file.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        file.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.dist-info/RECORD", "")
    return path


def test_time_to_a_level_is_that_of_the_first_epoch_there() -> None:
    curve = [
        {"epoch": 1, "clock_s": 2.0, "auroc": 0.55},
        {"epoch": 2, "clock_s": 4.0, "auroc": 0.83},
        {"epoch": 3, "clock_s": 7.0, "auroc": 0.79},
    ]
    assert (seconds_to(curve, 0.6), seconds_to(curve, 0.8), seconds_to(curve, 0.9)) == (4.0, 4.0, None)
    assert curve_rows({"it": curve})[-1] == "| it | 2.00 | 0.830 | 4.0 | 4.0 | 4.0 | – | – |"  # noqa: RUF001


def test_openvinos_kernels_and_their_shares_are_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("results_file.RESULTS", tmp_path)
    monkeypatch.setattr("rdedge.backends.openvino._CONFIG", {"PERFORMANCE_HINT": "LATENCY"})
    graph = ["--graph", str(bundle / "model.onnx")]
    monkeypatch.setattr(sys, "argv", ["openvino_kernels.py", str(bundle), *graph, "--frames", "3"])
    openvino_kernels.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    shares = [float(row[-1].strip("% |")) for row in rows[1:-1]]
    assert rows[-1][0] == "| all" and 99.0 < sum(shares) < 100.5
    assert len(list(tmp_path.glob("*_openvino_kernels_*"))) == 2
