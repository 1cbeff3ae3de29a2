"""Half an hour of real inference under `latest`: frames offered, less judged, must be what the drop counter says.

A video is played again and again, faster than it can be judged, through the line's own loop and a real bundle on ONNX
Runtime. Offered frames are counted where they are made, verdicts where they are written (the lines of the file), so
both counts are independent of the line's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge import Inspector
from rdedge.errors import ImageError, UsageError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.inspector import Rules
from rdedge.line.lane import Lane, Settings
from rdedge.line.service import serve
from rdedge.sinks import JsonLinesSink
from rdedge.sources.base import SourceInfo
from rdedge.stream import Stream
from results_file import write_results
from soak import look

LOOK_EVERY_S = 10.0


class VideoForTime:
    """The frames of a video in turn, one every ``interval_s``, for ``seconds``; ``made`` counts them."""

    def __init__(self, path: Path, seconds: float, interval_s: float):
        self.name, self.info, self.skipped = path.name, SourceInfo(), list[ImageError]()
        self.made = 0
        self._seconds, self._interval_s = seconds, interval_s
        self._pictures = list(pictures_of(path))

    def __iter__(self) -> Iterator[Frame]:
        due_s = time.monotonic()
        ends_s = due_s + self._seconds
        while time.monotonic() < ends_s:
            due_s += self._interval_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            picture = self._pictures[self.made % len(self._pictures)]
            self.made += 1
            yield Frame(image_bgr_u8=picture, index=self.made - 1, captured_at_s=time.monotonic(), source=self.name)

    def close(self) -> None:
        """Nothing is held."""


def pictures_of(path: Path) -> Iterator[NDArray[np.uint8]]:
    """All frames (H, W, 3) BGR. Raises UsageError where there is none."""
    video = cv2.VideoCapture(str(path))
    count = 0
    while True:
        is_read, picture = video.read()
        if not is_read:
            break
        count += 1
        yield picture.astype(np.uint8, copy=False)
    if count == 0:
        raise UsageError(f"{path}: no frames", remedy="give a video, such as the demo's line.mkv")


def silent(event: Event) -> None:
    """The drops of `latest` are counted, not told of."""


def main() -> None:
    """Run, compare the counts, write the results; exit code 1 where they do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("rdedge-demo/bundle"), help="(%(default)s)")
    parser.add_argument("--video", type=Path, default=Path("rdedge-demo/parts/line.mkv"), help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=400.0, help="more than can be judged (%(default)s)")
    args = parser.parse_args()
    source = VideoForTime(args.video, args.minutes * 60, 1 / args.fps)
    looks = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(LOOK_EVERY_S):
            looks.append(look(source.made))

    watcher = threading.Thread(target=watch, daemon=True)
    with tempfile.TemporaryDirectory() as folder, Inspector.open(args.bundle) as inspector:
        path = Path(folder) / "verdicts.jsonl"
        sink = JsonLinesSink(path, "soak", camera="video", max_bytes=1 << 40, on_event=silent)
        stream = Stream(source, policy="latest", camera="video", on_event=silent)
        settings = Settings(rules=Rules(), sinks=[sink])
        lane = Lane("video", source, stream, inspector, settings, on_event=silent, forgives=False)
        watcher.start()
        (counts,) = serve([lane], drain_s=10.0, on_shown=lambda lane, inspection: None, close_sinks=sink.close)
        stopping.set()
        watcher.join()
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    indices = [line["index"] for line in lines]
    is_exact = counts.offered == source.made and counts.judged == len(lines) == len(set(indices))
    is_exact = is_exact and counts.dropped == source.made - len(lines) and indices == sorted(indices)
    rss_mb = [seen.rss_kb / 1024 for seen in looks]
    rows = [
        "| what | figure |",
        "|---|---|",
        f"| frames made; offered by the line's count | {source.made}; {counts.offered} |",
        f"| verdicts in the file; judged by the line's count | {len(lines)}; {counts.judged} |",
        f"| made less verdicts; dropped by the line's count | {source.made - len(lines)}; {counts.dropped} |",
        f"| the counts agree, no frame twice, in order | {'yes' if is_exact else 'NO'} |",
        f"| resident memory after a tenth, at the end | {rss_mb[len(rss_mb) // 10]:.1f}, {rss_mb[-1]:.1f} MB |",
        f"| time, frames judged a second | {args.minutes:g} min, {counts.judged / args.minutes / 60:.0f} |",
    ]
    figures: dict[str, object] = {
        "made": source.made,
        "judged": counts.judged,
        "dropped": counts.dropped,
        "rss_mb": rss_mb,
    }
    write_results("soak_real", "\n".join(rows), figures, ("numpy", "onnxruntime"))
    if not is_exact:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
