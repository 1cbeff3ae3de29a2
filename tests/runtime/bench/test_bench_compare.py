"""`rdedge bench --compare`: ratios with intervals, and no comparison of different things by accident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rdedge.bench.record import STAGES, WHOLE, Memory, Phase, Record, read_record, write_record
from rdedge.cli import main

Refused = Callable[..., str]
SUBJECT = {"processor": "p", "cores": "2", "bundle": "abc", "precision": "fp32", "backend": "onnxruntime"}


def record(times: np.ndarray, **subject: str) -> Record:
    columns = {stage: times.tolist() for stage in STAGES if stage != "device"}
    phase = Phase(
        name="steady",
        times_ms=columns,
        warm_up_ms={},
        at_s=[float(i) for i in range(len(times))],
        seconds=1.0,
        offered=len(times),
        judged=len(times),
        dropped=0,
        rejected=0,
        lost=0,
        board=None,
    )
    return Record(
        schema_version=1,
        date_utc="2026-11-22T08:00:00Z",
        command="rdedge bench",
        subject=SUBJECT | subject,
        versions={"rdedge": "0.1.0"},
        notes=(),
        phases=(phase,),
        device_parts_ms={},
        cold_start_ms=[100.0, 110.0],
        memory=Memory(bench_peak_mb=1.0, run_peak_mb=None, device_mb=None),
    )


def noise(seed: int, count: int = 400) -> np.ndarray:
    return 10.0 + np.random.default_rng(seed).normal(size=count)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(name: str, times: np.ndarray, **subject: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_record(path, record(times, **subject))
        return path

    return put


def rows_of(out: str, stage: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(stage)]


def test_a_slower_side_is_named(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.json", noise(0)), write("b.json", 1.5 * noise(1))
    assert main(["bench", "--compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out, WHOLE)
    assert [row.split()[3] for row in rows] == ["p50", "p90", "p95"], "p99 has too few frames beyond it"
    assert all("B is slower" in row for row in rows) and "1.5" in rows[0]
    assert "cold start: 1.000 times as long" in out and "One run of a side" in out
    assert main(["bench", "--compare", str(b), str(a)]) == 0
    assert all("B is faster" in row for row in rows_of(capsys.readouterr().out, WHOLE))


def test_the_same_shows_no_difference(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.json", noise(0)), write("b.json", noise(0)[::-1])
    assert main(["bench", "--compare", str(a), str(b)]) == 0
    assert all("no difference shown" in row for row in rows_of(capsys.readouterr().out, WHOLE))


def test_folders_are_several_runs(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        write(f"a/{k}.json", noise(k))
        b = write(f"b/{k}.json", (1.0 + 0.1 * k) * noise(k + 3))
    assert main(["bench", "--compare", str(b.parents[1] / "a"), str(b.parent)]) == 0
    out = capsys.readouterr().out
    assert "A 3 runs of" in out and "One run of a side" not in out
    assert "no difference shown" in rows_of(out, WHOLE)[0], "runs of B differ more than B from A"


@pytest.mark.parametrize(("name", "value"), [("processor", "q"), ("bundle", "def"), ("backend", "tensorrt")])
def test_different_things_are_refused_and_named(
    write: Callable[..., Path], refused: Refused, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    a, b = write("a.json", noise(0)), write("b.json", noise(1), **{name: value})
    told = f"{name}: {SUBJECT[name]} against {value}"
    assert told in refused("bench", "--compare", a, b)
    assert main(["bench", "--compare", str(a), str(b), "--anyway"]) == 0
    assert capfd.readouterr().out.startswith(f"DIFFERENT {told}\n")


def test_runs_of_one_side_must_be_alike(write: Callable[..., Path], refused: Refused) -> None:
    a = write("a/0.json", noise(0))
    write("a/1.json", noise(1), **{"power mode": "15W"})
    assert "power mode: 15W and not known against not known" in refused("bench", "--compare", a.parent, a)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "cannot be read"),
        (b"{", "is no measurement"),
        (b"\xff", "is no measurement"),
        (b'{"schema_version": 1}', "is no measurement"),
    ],
    ids=["missing", "cut", "bytes", "empty"],
)
def test_what_is_no_measurement_is_refused(tmp_path: Path, refused: Refused, data: bytes | None, says: str) -> None:
    path = tmp_path / "x.json"
    if data is not None:
        path.write_bytes(data)
    assert says in refused("bench", "--compare", path, path)


def test_a_comparison_writes_no_file(tmp_path: Path, refused: Refused) -> None:
    told = refused("bench", "--compare", "a.json", "b.json", "--html", tmp_path / "page.html")
    assert "--compare with --json or --html" in told


def test_a_folder_without_measurements_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "holds no measurements" in refused("bench", "--compare", tmp_path, tmp_path)


def test_other_schemas_and_uneven_columns_are_refused(tmp_path: Path, refused: Refused) -> None:
    whole = record(noise(0))
    path = tmp_path / "x.json"
    write_record(path, msgspec.structs.replace(whole, schema_version=2))
    assert "is of schema 2, this rdedge reads 1" in refused("bench", "--compare", path, path)
    phase = msgspec.structs.replace(whole.phases[0], at_s=[0.0])
    write_record(path, msgspec.structs.replace(whole, phases=(phase,)))
    assert "phase steady is incomplete" in refused("bench", "--compare", path, path)


def test_too_few_frames_are_told(write: Callable[..., Path], refused: Refused) -> None:
    a = write("a.json", noise(0, count=5))
    assert "no stage with frames enough" in refused("bench", "--compare", a, a)


def test_what_is_written_is_read_again(write: Callable[..., Path]) -> None:
    assert read_record(write("a.json", noise(0))) == record(noise(0))
