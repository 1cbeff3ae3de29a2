"""Several cameras on one engine: frames a second and the age of verdicts, one frame a call against N (``--batch N``).

N cameras give a frame each at the same rate. The engine is ONNX Runtime on this machine's CPU, where a call for N
frames takes about N times as long and nothing can be gained but calls; on a GPU, run it with ``--backend tensorrt``
after ``rdedge engine`` on both bundles, which are kept in ``--work``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from line_overhead import MemorySource, make_bundle, percentiles, silent
from rdedge.bundle import open_bundle
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.lane import Lane, Settings
from rdedge.line.service import serve
from rdedge.stream import Stream
from results_file import write_results
from run_rdedge import run_rdedge

ROUNDS = 3


def make_bundles(work: Path, batch: int) -> dict[int, Path]:
    """Of one run, for one frame a call and for ``batch``; what is there is used again."""
    single, many = work / "bundle", work / f"batch{batch}"
    if not single.exists():
        make_bundle(work)
    if not many.exists():
        run_rdedge("export", work / "run", "--out", many, "--batch", batch)
    return {1: single, batch: many}


def run_line(bundle: Path, backend: str, cameras: int, frames: int, interval_s: float) -> tuple[float, list[float]]:
    """Frames a second of all cameras, and seconds from each capture to its verdict."""
    ages_s: list[float] = []

    def note(lane: Lane, inspection: Inspection) -> None:
        ages_s.append(time.monotonic() - inspection.frame.captured_at_s)

    with Inspector.open(bundle, backend=backend, threshold=1e9) as inspector:  # type: ignore[arg-type]
        lanes = []
        for number in range(cameras):
            source = MemorySource(frames, interval_s)
            stream = Stream(source, policy="every", camera=f"c{number}", on_event=silent)
            settings = Settings(rules=Rules())
            lanes.append(Lane(f"c{number}", source, stream, inspector, settings, on_event=silent, forgives=True))
        started_s = time.monotonic()
        counts = serve(lanes, drain_s=5.0, on_shown=note, close_sinks=lambda: None)
    assert [count.judged for count in counts] == [frames] * cameras
    return cameras * frames / (time.monotonic() - started_s), ages_s


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--frames", type=int, default=300, help="of each camera")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--work", type=Path, help="folder for the bundles, kept")
    args = parser.parse_args()
    figures: dict[str, object] = {"cameras": args.cameras, "frames": args.frames, "backend": args.backend}
    rows = [
        f"{args.cameras} cameras, 256x256, {args.backend}, {args.frames} frames each; medians of {ROUNDS} runs. Ages "
        "are from capture to verdict, at half the rate that one frame a call reaches.",
        "",
        "| frames a call | frames/s, as fast as it goes | age p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        bundles = make_bundles(args.work or Path(scratch), args.cameras)
        interval_s = 0.0
        for batch, bundle in bundles.items():
            assert open_bundle(bundle).contract.graph.batch == batch
            rates = sorted(run_line(bundle, args.backend, args.cameras, args.frames, 0.0)[0] for _ in range(ROUNDS))
            rate = rates[ROUNDS // 2]
            interval_s = interval_s or 2.0 * args.cameras / rate
            _, ages_s = run_line(bundle, args.backend, args.cameras, args.frames, interval_s)
            ages = percentiles(np.array(ages_s) * 1e3)
            figures[f"batch{batch}"] = {"frames_per_second": rates, "age_ms": ages}
            rows.append(f"| {batch} | {rate:.0f} | {ages['p50']:.1f} | {ages['p99']:.1f} | {ages['max']:.1f} |")
    write_results("batched_cameras", "\n".join(rows), figures, ("numpy", "opencv-python-headless", "onnxruntime"))


if __name__ == "__main__":
    main()
