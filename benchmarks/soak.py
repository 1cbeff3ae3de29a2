"""A million frames through a line on the fake engine: memory, threads and open files must not grow.

Two cameras of 256x256 frames from memory, one with a mask, one with a K-of-N rule; JSON lines with rotation, pictures
of rejects within a budget, drift watch, and metrics that are scraped all along. Growth of the resident memory is from
the median of the first tenth after a warm-up to the median of the last tenth.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from line_overhead import MemorySource, make_bundle
from rdedge.backends.fake import FakeBackend
from rdedge.bundle import Bundle, open_bundle
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.announcer import Announcer
from rdedge.line.config import JsonLines, Pictures, Sinks
from rdedge.line.health import Health, HealthServer
from rdedge.line.lane import Lane, LaneCounts, Settings
from rdedge.line.masks import Mask
from rdedge.line.outlets import Outlets
from rdedge.line.service import serve
from rdedge.stream import Stream
from results_file import write_results

CAMERAS = 2
SAMPLES = 100  # looks at the process
WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Look:
    """At the process after so many frames."""

    frames: int
    rss_kb: int
    threads: int  # without those that write lines while the disk is busy, one a camera, which start when it first is
    files: int


def look(frames: int) -> Look:
    """Now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    rss_kb = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    threads = [thread.name for thread in threading.enumerate()]
    return Look(
        frames, rss_kb, len(threads) - min(CAMERAS, threads.count("rdedge-lines")), len(os.listdir("/proc/self/fd"))
    )


def soak(bundle: Bundle, frames: int, folder: Path) -> tuple[list[Look], list[LaneCounts]]:
    """So many frames, half of them from each camera; what was seen of the process, and the counts."""
    announcer = Announcer()
    inspector = Inspector(bundle, FakeBackend(bundle.contract.graph), "fp32", threshold=0.9)
    size_hw = bundle.contract.input.size_hw
    lanes, all_outlets = [], []
    for name, k_of_n in (("masked", None), ("debounced", (1, 2))):
        outlets = Outlets(
            name,
            session="soak",
            folder=folder / name,
            roi_xywh=None,
            file=lambda name: folder / name,
            secret=lambda name: None,
            drain_s=5.0,
            on_event=announcer,
        )
        outlets.set(Sinks(jsonl=JsonLines(max_mb=5, keep_files=2), pictures=Pictures(max_mb=1, keep_rejects=3)))
        mask = Mask(ignored=(((0, 0), (20, 0), (0, 20)),)) if k_of_n is None else None
        settings = Settings(rules=Rules(mask=mask), k_of_n=k_of_n, sinks=outlets.sinks)
        source = MemorySource(frames // 2, size_hw=size_hw)
        stream = Stream(source, camera=name, on_event=announcer)
        lanes.append(Lane(name, source, stream, inspector, settings, on_event=announcer, forgives=True))
        all_outlets.append(outlets)
    health = Health(lanes, announcer)
    server = HealthServer("127.0.0.1", 0, health)
    others = set(threading.enumerate())
    looks: list[Look] = []
    judged = 0

    def note(lane: Lane, inspection: Inspection) -> None:
        nonlocal judged
        judged += 1
        if judged % (frames // SAMPLES) == 0:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as answer:
                answer.read()
            while any(thread.name.startswith("Thread-") for thread in set(threading.enumerate()) - others):
                time.sleep(0.001)  # the server's for that request
            looks.append(look(judged))

    def close_sinks() -> None:
        for outlets in all_outlets:
            outlets.close()

    counts = serve(lanes, drain_s=5.0, on_shown=note, close_sinks=close_sinks, health=health)
    server.close()
    return looks, counts


def growth(looks: list[Look]) -> float:
    """Share by which the resident memory grew after the warm-up."""
    settled = looks[round(len(looks) * WARM_UP_SHARE) :]
    tenth = max(1, len(settled) // 10)
    first, last = (np.median([seen.rss_kb for seen in part]) for part in (settled[:tenth], settled[-tenth:]))
    return float(last / first - 1.0)


def _others(counts: LaneCounts) -> tuple[int, int, int]:
    return counts.offered, counts.dropped, counts.skipped


def main() -> None:
    """Soak, print and write the results; exit code 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        making = get_context("spawn").Process(target=make_bundle, args=(Path(work),))  # else torch's memory is ours
        making.start()
        making.join()
        bundle = open_bundle(Path(work) / "bundle")
        started_s = time.monotonic()
        looks, counts = soak(bundle, args.frames, Path(work) / "out")
        taken_s = time.monotonic() - started_s
        kept_mb = sum(p.stat().st_size for p in (Path(work) / "out").rglob("*") if p.is_file()) / 1e6
    grown = growth(looks)
    settled = looks[round(len(looks) * WARM_UP_SHARE) :]
    threads, files = sorted({seen.threads for seen in settled}), sorted({seen.files for seen in settled})
    judged, rejected = sum(c.judged for c in counts), sum(c.rejected for c in counts)
    rows = [
        "| what | figure |",
        "|---|---|",
        f"| frames judged, rejected | {judged}, {rejected} |",
        f"| offered, dropped, skipped | {', '.join(str(sum(c)) for c in zip(*map(_others, counts), strict=True))} |",
        f"| resident memory after {WARM_UP_SHARE:.0%}, at the end | {settled[0].rss_kb / 1024:.1f}, "
        f"{settled[-1].rss_kb / 1024:.1f} MB |",
        f"| its growth | {grown:+.2%} |",
        f"| threads, open files (all that were seen) | {threads}, {files} |",
        f"| files left on the disk | {kept_mb:.1f} MB |",
        f"| time | {taken_s:.0f} s, {judged / taken_s:.0f} frames/s |",
    ]
    figures: dict[str, object] = {
        "frames": judged,
        "growth": grown,
        "looks": [[seen.frames, seen.rss_kb, seen.threads, seen.files] for seen in looks],
    }
    write_results("soak", "\n".join(rows), figures, ("numpy", "opencv-python-headless", "msgspec"))
    if grown >= 0.02 or threads[-1] > settled[0].threads or files[-1] > settled[0].files + 1:  # one is being rotated
        raise SystemExit(1)


if __name__ == "__main__":
    main()
