"""`make bench-compare`: which commit it takes, that its files are unpacked as they are, and that both are judged."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import compare_trees
from rdedge.contract import SCHEMA_VERSION

ROOT = Path(compare_trees.__file__).parents[1]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A repository with two commits of a file in runtime/; what git answers."""
    repository = tmp_path / "repository"
    for package in compare_trees.PACKAGES:
        (repository / package).mkdir(parents=True)

    def run(*arguments: str) -> str:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *names, "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    run("init", "--quiet")
    for text in ("old", "new"):
        for package in compare_trees.PACKAGES:
            (repository / package / "file").write_text(text)
        run("add", ".")
        run("commit", "--quiet", "-m", text)
    monkeypatch.setattr(compare_trees, "ROOT", repository)
    return run


def test_a_schema_is_that_of_the_tree() -> None:
    assert compare_trees.schema(ROOT).endswith(f"= {SCHEMA_VERSION}")


def test_the_commit_before_is_taken_and_unpacked(git: Callable[..., str], tmp_path: Path) -> None:
    commit = compare_trees.earlier_commit()
    assert commit == git("rev-parse", "--short", "HEAD^")
    tree = compare_trees.unpack(commit, tmp_path / "tree")
    assert [(tree / package / "file").read_text() for package in compare_trees.PACKAGES] == ["old"] * 3
    assert git("status", "--porcelain") == "" and git("worktree", "list").count("\n") == 0


def test_the_last_release_goes_before_it(git: Callable[..., str]) -> None:
    git("tag", "v1", "HEAD^")
    git("commit", "--quiet", "--allow-empty", "-m", "third")
    assert compare_trees.earlier_commit() == "v1"


def test_changed_files_are_compared_with_their_own_commit(git: Callable[..., str]) -> None:
    (compare_trees.ROOT / "train" / "file").write_text("changed")
    assert compare_trees.earlier_commit() == git("rev-parse", "--short", "HEAD")


def test_without_an_earlier_commit_there_is_nothing_to_compare(
    git: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git("update-ref", "HEAD", git("commit-tree", "HEAD^{tree}", "-m", "alone"))
    monkeypatch.setattr("sys.argv", ["compare_trees.py", "--short"])
    compare_trees.main()
    assert capsys.readouterr().out == "no earlier commit is here: nothing to compare with\n"


def test_an_unknown_commit_is_told(git: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere: "):
        compare_trees.unpack("nowhere", tmp_path / "tree")


def test_both_sides_are_judged_in_fresh_processes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [(ROOT, bundle), (ROOT, bundle)]
    pairs = [compare_trees.measure_pair(sides, 2, is_swapped) for is_swapped in (False, True)]
    for before, now in pairs:
        for answers in (before, now):
            assert {len(answers[stage]) for stage in compare_trees.STAGES} == {18}
            assert answers["cold start"][0] > np.median(answers["engine"]) and 10 < answers["peak memory"][0] < 2000
            assert min(answers["frame to verdict"]) > max(0.0, min(answers["judge"]))
    compare_trees.report("abc123", pairs, is_short=True, is_shared=True)
    out = capsys.readouterr().out
    assert "2 pairs of fresh processes, 18 frames" in out and "concludes nothing" in out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows == [
        "measure",
        *(f"{stage}, p50" for stage in compare_trees.STAGES),
        "cold start",
        "peak memory",
    ]


def test_a_tree_that_cannot_judge_is_named(tmp_path: Path, bundle: Path) -> None:
    for package in compare_trees.PACKAGES:
        (tmp_path / package / "rdedge").mkdir(parents=True)
    (tmp_path / "runtime" / "rdedge" / "__init__.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(SystemExit, match="cannot be measured so: its process ended with 3"):
        compare_trees.measure_pair([(tmp_path, bundle), (ROOT, bundle)], 1, False)
