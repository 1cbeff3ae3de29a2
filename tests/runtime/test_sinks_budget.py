"""Pictures stay within their budget: the oldest go, the last rejects never, over restarts and kills."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from sink_parts import inspection

from rdedge.errors import SinkError
from rdedge.sinks import DiskBudget, OverlaySink


def write(path: Path, size_bytes: int, age: int) -> Path:
    """A picture written ``age`` seconds after the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    os.utime(path, ns=(0, 10**18 + age * 10**9))
    return path


def left(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.jpg"))


def test_the_oldest_go_whatever_folder_they_are_in(tmp_path: Path) -> None:
    names = ["b/1.jpg", "a/good/2.jpg", "c/3.jpg", "a/4.jpg", "b/good/5.jpg"]
    for age, name in enumerate(names):
        write(tmp_path / name, 100, age)
    budget = DiskBudget(tmp_path, max_bytes=500, keep_rejects=0)
    budget.make_room(0)
    assert len(left(tmp_path)) == 5
    for count in (4, 3, 2, 1):
        budget.make_room(500 - 100 * count)
        assert left(tmp_path) == sorted(names[5 - count :])


def test_the_last_rejects_stay_even_beyond_the_budget(tmp_path: Path) -> None:
    for age in range(10):
        write(tmp_path / f"s/{age}.jpg", 100, age)
        write(tmp_path / f"s/good/{age}.jpg", 100, age)
    budget = DiskBudget(tmp_path, max_bytes=50, keep_rejects=3)
    budget.make_room(100)
    assert left(tmp_path) == ["s/7.jpg", "s/8.jpg", "s/9.jpg"]


def test_new_pictures_push_out_old_ones_and_good_ones_are_not_counted_as_rejects(tmp_path: Path) -> None:
    budget = DiskBudget(tmp_path, max_bytes=1000, keep_rejects=2)
    for age in range(50):
        budget.make_room(100)
        name = f"s/{age:02d}.jpg" if age % 10 == 0 else f"s/good/{age:02d}.jpg"
        budget.add(write(tmp_path / name, 100, age))
        assert used(tmp_path) <= 1000
    assert left(tmp_path) == sorted(["s/30.jpg", "s/40.jpg", *(f"s/good/{age:02d}.jpg" for age in range(42, 50))])


def test_a_restart_counts_what_is_there_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    for age in range(5):
        write(tmp_path / f"old/{age}.jpg", 100, age)
    (tmp_path / "old" / ".5.jpg.partial-99999999").write_bytes(b"half")
    (tmp_path / "empty" / "good").mkdir(parents=True)
    (tmp_path / "old" / "note.txt").write_bytes(b"mine")
    DiskBudget(tmp_path, max_bytes=300, keep_rejects=0).make_room(0)
    assert sorted(os.listdir(tmp_path)) == ["old"]
    assert sorted(os.listdir(tmp_path / "old")) == ["2.jpg", "3.jpg", "4.jpg", "note.txt"]


def test_pictures_that_somebody_removed_make_room_too(tmp_path: Path) -> None:
    for age in range(5):
        write(tmp_path / f"{age}.jpg", 100, age)
    budget = DiskBudget(tmp_path, max_bytes=500, keep_rejects=0)
    budget.make_room(0)
    for age in (0, 1, 2):
        (tmp_path / f"{age}.jpg").unlink()
    budget.make_room(300)
    assert left(tmp_path) == ["3.jpg", "4.jpg"]


def test_a_folder_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    DiskBudget(tmp_path / "later", max_bytes=1, keep_rejects=0).make_room(100)
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize("seed", range(5))
def test_real_pictures_stay_within_the_budget_over_restarts(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root, rejects = tmp_path / "rejects", []
    budget_bytes, keep = 120_000, 4
    for run in range(4):
        budget = DiskBudget(root, max_bytes=budget_bytes, keep_rejects=keep)
        sink = OverlaySink(root / f"run{run}", None, good_every=2, budget=budget)
        for index in range(20):
            is_anomalous = rng.random() < 0.3
            sink.write(inspection(index, is_anomalous=is_anomalous, size_hw=(rng.randint(100, 300), 200)))
            if is_anomalous:
                rejects.append(f"run{run}/{index:06d}_b.jpg")
            assert used(root) <= budget_bytes
            assert set(rejects[-keep:]) <= set(left(root)), "the last rejects are there"
    newest = max(left(root), key=lambda name: (root / name).stat().st_mtime_ns)
    assert newest.startswith("run3/")


def test_a_picture_that_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rejects").mkdir()
    for age in range(3):
        write(tmp_path / f"rejects/{age}.jpg", 100, age)
    budget = DiskBudget(tmp_path / "rejects", max_bytes=100, keep_rejects=0)
    budget._read_folder()
    for age in range(3):
        (tmp_path / f"rejects/{age}.jpg").unlink()
        (tmp_path / f"rejects/{age}.jpg").mkdir()
    with pytest.raises(SinkError, match=r"000003_b.jpg: cannot be written \(Is a directory\)"):
        OverlaySink(tmp_path / "rejects" / "s", None, budget=budget).write(inspection())
