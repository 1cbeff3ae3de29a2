"""``rdedge demo``: a made sample part through every verb of the line, so that a newcomer sees it work."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from rdedge.cli import main as rdedge
from rdedge_train.sample import SamplePlan, make_sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--out", type=Path, default=Path("rdedge-demo"), help="folder for everything (default %(default)s)"
    )


def execute(args: argparse.Namespace) -> int:
    """Make the sample; then train, export, evaluate and run, each by the command that is shown."""
    started_s = time.monotonic()
    parts, run, bundle, line = (args.out / name for name in ("parts", "run", "bundle", "line"))
    report = args.out / "report.html"
    if not parts.exists():
        print("making a sample: photographs of a machined flange, good and with four kinds of defect", flush=True)
        make_sample(parts, SamplePlan(), progress=_show_progress)
    commands = [
        ["train", str(parts), "--out", str(run)],
        ["export", str(run), "--out", str(bundle)],
        ["evaluate", str(bundle), str(parts), "--report", str(report), "--json", str(args.out / "report.json")],
        ["run", str(bundle), "--source", str(parts / "line.mkv"), "--out", str(line)],
    ]
    for command in commands:
        if command[0] == "export" and bundle.exists():
            continue  # a second demo shows the line again without training anew
        print(f"\n$ rdedge {' '.join(command)}", flush=True)
        code = rdedge(command)
        if code != 0:
            return code
    print(f"\n{_against_truth(parts / 'line.truth.json', line / 'verdicts.jsonl')}")
    print(f"report, with pictures: {report}\ndone in {time.monotonic() - started_s:.0f} s")
    return 0


def _against_truth(truth_path: Path, verdicts_path: Path) -> str:
    """Verdicts of the stream by what the parts really were."""
    truth = [entry["defect"] or "good" for entry in json.loads(truth_path.read_text(encoding="utf-8"))]
    lines = verdicts_path.read_text(encoding="utf-8").splitlines()[-len(truth) :]
    rejected = Counter(
        kind for kind, line in zip(truth, lines, strict=True) if json.loads(line)["verdict"] == "anomalous"
    )
    rows = ["what the parts were   parts  rejected  passed"]
    for kind, count in sorted(Counter(truth).items(), key=lambda item: (item[0] != "good", item[0])):
        rows.append(f"{kind:<20}  {count:>5}  {rejected[kind]:>8}  {count - rejected[kind]:>6}")
    return "\n".join(rows)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True)
