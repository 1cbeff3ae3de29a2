"""This tree against an earlier one, as ratios in one run: frame to verdict, cold start and peak memory.

The earlier tree is the last release (tag), or the commit before; its files are unpacked beside, nothing of the checkout
changes. Both run in the same venv, in fresh processes in turn, a few frames of each in turn, on the same machine at the
same time: absolute figures of another day, as in a release's results, would compare machines and not code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rdedge.bench.memory import peak_memory_mb
from rdedge.bench.stats import PERCENTILES, percentiles, ratios
from results_file import write_results
from tree_child import FRAME_HW, STAGES

ROOT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("tree_child.py")
PACKAGES = ("runtime", "train", "export")
_SETTLE_S = 0.1  # an engine's threads may spin after their turn, and would take a core from the other side's
Answers = dict[str, list[float]]


def main() -> None:
    """Unpack, make bundles, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="the earlier tree (the last tag, else the commit before)")
    parser.add_argument(
        "--short", action="store_true", help="quick, with one bundle if both read it; writes no results"
    )
    parser.add_argument("--processes", type=int, help="pairs of fresh processes (6; short: 3)")
    parser.add_argument("--rounds", type=int, help="turns of each process (30; short: 6)")
    parser.add_argument("--bundle", type=Path, help="measure both with this bundle (each makes its own)")
    args = parser.parse_args()
    commit = args.against or earlier_commit()
    if commit is None:
        print("no earlier commit is here: nothing to compare with")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        earlier = unpack(commit, work / "earlier")
        is_shared = args.short and schema(earlier) == schema(ROOT)
        bundles = [args.bundle] * 2 if args.bundle else make_bundles([earlier, ROOT], work, is_shared=is_shared)
        sides = list(zip([earlier, ROOT], bundles, strict=True))
        processes = args.processes or (3 if args.short else 6)
        pairs = [measure_pair(sides, args.rounds or (6 if args.short else 30), k % 2 == 1) for k in range(processes)]
    report(commit, pairs, is_short=args.short, is_shared=is_shared or args.bundle is not None)


def earlier_commit() -> str | None:
    """The last release before this commit; without one the commit before, or this one where files were changed."""
    for command in (["describe", "--tags", "--abbrev=0", "HEAD^"], ["rev-parse", "--short", "HEAD^"]):
        done = _git(*command)
        if done.returncode == 0:
            is_changed = command[0] == "rev-parse" and _git("status", "--porcelain", "--", *PACKAGES).stdout.strip()
            return _git("rev-parse", "--short", "HEAD").stdout.strip() if is_changed else done.stdout.strip()
    return None


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


def unpack(commit: str, folder: Path) -> Path:
    """The packages of a commit below ``folder``. Ends the program where it is unknown."""
    folder.mkdir()
    archive = folder / "tree.tar"
    done = _git("archive", "--output", str(archive), commit, "--", *PACKAGES)
    if done.returncode != 0:
        raise SystemExit(f"{commit}: {done.stderr.strip()}")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return folder


def schema(tree: Path) -> str:
    """Which bundles a tree reads: as its contract says."""
    lines = (tree / "runtime/rdedge/contract.py").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("SCHEMA_VERSION"))


def environment(tree: Path) -> dict[str, str]:
    """With a tree's packages before those installed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(tree / package) for package in PACKAGES)}


def make_bundles(trees: list[Path], work: Path, *, is_shared: bool) -> list[Path]:
    """Of untrained models, which changes no time: by each tree its own, so that what export does is measured too.

    ``is_shared``: one for both, by the earlier tree, which the later one must be able to read.
    """
    parts = work / "parts"
    sample = "from pathlib import Path; import sys; from rdedge_train.sample import SamplePlan, make_sample; "
    sample += "make_sample(Path(sys.argv[1]), SamplePlan(train_good=10, test_good=1, test_per_defect=1, "
    sample += "video_frames=4, size_hw=(256, 256)))"
    _run([sys.executable, "-c", sample, str(parts)], trees[0])
    bundles = []
    for k, tree in enumerate(trees[:1] if is_shared else trees):
        run, bundle = work / f"run-{k}", work / f"bundle-{k}"
        options = ["--epochs", "1", "--teacher-weights", "random:0"]
        _run([sys.executable, "-m", "rdedge", "train", str(parts), "--out", str(run), *options], tree)
        _run([sys.executable, "-m", "rdedge", "export", str(run), "--out", str(bundle)], tree)
        bundles.append(bundle)
    return bundles * 2 if is_shared else bundles


def _run(command: list[str], tree: Path) -> None:
    done = subprocess.run(command, env=environment(tree), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:4])} of {tree} failed: {done.stderr.strip()[-500:]}")


def measure_pair(sides: list[tuple[Path, Path]], rounds: int, is_swapped: bool) -> list[Answers]:
    """Both trees in a fresh process each; times by stage, with ``cold start`` in ms and ``peak memory`` in MB."""
    answers: list[Answers] = [{stage: [] for stage in STAGES} for _ in sides]
    order = (1, 0) if is_swapped else (0, 1)
    children: dict[int, subprocess.Popen[str]] = {}
    with ExitStack() as stack:
        for side in order:
            tree, bundle = sides[side]
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, str(CHILD), str(bundle)],
                env=environment(tree),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            children[side] = stack.enter_context(child)  # leaving closes its stdin, which ends it
            if _answer(child, tree).strip() != "ready":
                raise SystemExit(f"the tree {tree} does not judge frames")
            answers[side]["cold start"] = [(time.perf_counter() - started) * 1e3]
        for k in range(rounds):
            for side in order if k % 2 == 0 else order[::-1]:
                stdin = children[side].stdin
                assert stdin is not None
                time.sleep(_SETTLE_S)
                print("go", file=stdin, flush=True)
                for stage, times in json.loads(_answer(children[side], sides[side][0])).items():
                    answers[side][stage] += times[1:]  # the caches still held the other side's at the first
        for side, child in children.items():
            answers[side]["peak memory"] = [peak_memory_mb(child.pid)]
    return answers


def _answer(child: subprocess.Popen[str], tree: Path) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"the tree {tree} cannot be measured so: its process ended with {child.wait()}")
    return line


def report(commit: str, pairs: list[list[Answers]], *, is_short: bool, is_shared: bool) -> None:
    """A row a measure; the interval is over processes."""
    frames = len(pairs[0][0][STAGES[-1]])
    rows = [
        f"This tree against {commit}: {len(pairs)} pairs of fresh processes, {frames} frames of {FRAME_HW[1]}x"
        f"{FRAME_HW[0]} each, in turn; "
        + ("one bundle for both." if is_shared else "each with the bundle that it makes itself."),
        "",
        f"| measure | {commit} | this tree | times as long or large (95 % interval) | |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"against": commit}
    for measure in (*STAGES, "cold start", "peak memory"):
        before, now = ([np.array(pair[side][measure]) for pair in pairs] for side in (0, 1))
        if len(before[0]) == 1:  # one a process: repeated, which changes neither its percentile nor the interval
            before, now = ([np.repeat(run, 1000) for run in runs] for runs in (before, now))
        for percentile, known in zip(PERCENTILES, ratios(before, now), strict=True):
            if known is None or percentile > (95.0 if measure == STAGES[-1] else 50.0):
                continue
            ratio, low, high = known
            was, is_now = (float(np.median([np.percentile(run, percentile) for run in runs])) for runs in (before, now))
            unit = "MB" if measure == "peak memory" else "ms"
            says = "no difference shown" if low <= 1.0 <= high else ("more" if ratio > 1.0 else "less")
            name = f"{measure}, p{percentile:g}" if measure in STAGES else measure
            rows.append(
                f"| {name} | {was:.2f} {unit} | {is_now:.2f} {unit} | {ratio:.3f} ({low:.3f} to {high:.3f}) | {says} |"
            )
            figures[name] = {"before": was, "now": is_now, "ratio": ratio, "low": low, "high": high}
    table = "\n".join(rows)
    if is_short:
        print(table)
        print("\nA short run on a shared machine: it reports and concludes nothing.")
    else:
        runs = [[summary(answers) for answers in pair] for pair in pairs]
        write_results("compare_trees", table, figures | {"pairs": runs}, ("onnxruntime",))


def summary(answers: Answers) -> dict[str, list[float | None]]:
    """Of a process: a stage's percentiles as ``PERCENTILES`` has them, and what there is one of as it is."""
    return {measure: percentiles(values) if len(values) > 1 else [*values] for measure, values in answers.items()}


if __name__ == "__main__":
    main()
