"""What the line's loop costs around an engine: frames a second, added latency, and how old a judged frame is.

The engine is the fake one (dark pixels are anomalous), 256x256 frames come from memory, verdicts go to a JSON-lines
sink, as in a line with a file. Added latency is from a frame's capture to its verdict written, less the engine's time.
The age under ``latest`` is from capture to verdict while an engine that takes 45 ms meets a camera of 30 frames/s.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, Prediction
from rdedge.backends.fake import FakeBackend
from rdedge.bundle import Bundle, open_bundle
from rdedge.errors import CameraFault, ImageError
from rdedge.events import Event, tell
from rdedge.frames import Frame
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.lane import Lane, Settings
from rdedge.line.service import serve
from rdedge.sinks import JsonLinesSink
from rdedge.sources import FrameSource
from rdedge.sources.base import Camera, SourceInfo
from rdedge.sources.health import WatchLimits
from rdedge.sources.watched import WatchedSource
from rdedge.stream import Policy, Stream
from rdedge_train.sample import SamplePlan, make_sample
from results_file import write_results
from run_rdedge import run_rdedge

SIZE_HW = (256, 256)
SLOW_S = 0.045
CAMERA_INTERVAL_S = 1 / 30
ROUNDS = 7


class MemorySource:
    """So many noisy bright frames, one every ``interval_s`` (0: as fast as they are taken); one in 500 is dark."""

    def __init__(self, frames: int, interval_s: float = 0.0, size_hw: tuple[int, int] = SIZE_HW):
        self.name = "memory"
        self.skipped: list[ImageError] = []
        self.info = SourceInfo()
        self.frames, self._interval_s = frames, interval_s
        rng = np.random.default_rng(0)
        self._pictures = [rng.integers(150, 256, (*size_hw, 3), np.uint8) for _ in range(16)]
        self._dark: NDArray[np.uint8] = np.zeros((*size_hw, 3), np.uint8)

    def __iter__(self) -> Iterator[Frame]:
        due_s = time.monotonic()
        for index in range(self.frames):
            if self._interval_s:
                due_s += self._interval_s
                time.sleep(max(0.0, due_s - time.monotonic()))
            picture = self._dark if index % 500 == 499 else self._pictures[index % len(self._pictures)]
            yield Frame(image_bgr_u8=picture, index=index, captured_at_s=time.monotonic(), source=self.name)

    def close(self) -> None:
        """Nothing is held."""


class SlowBackend:
    """The fake engine, taking ``SLOW_S`` a frame, without the processor, as a GPU does."""

    name = "slow"
    thresholds = None

    def __init__(self, bundle: Bundle):
        self._fake = FakeBackend(bundle.contract.graph)

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """See Backend.infer."""
        started_s = time.monotonic()
        prediction = self._fake.infer(frame_u8)
        time.sleep(max(0.0, SLOW_S - (time.monotonic() - started_s)))
        return prediction

    def close(self) -> None:
        """See Backend.close."""


def make_bundle(work: Path) -> Path:
    """Any bundle for 256x256: an untrained model of the path that every bundle takes."""
    parts, run, bundle = work / "parts", work / "run", work / "bundle"
    make_sample(parts, SamplePlan(train_good=10, test_good=1, test_per_defect=1, video_frames=4, size_hw=SIZE_HW))
    for command in (
        ["train", str(parts), "--out", str(run), "--epochs", "1", "--teacher-weights", "random:0"],
        ["export", str(run), "--out", str(bundle)],
    ):
        run_rdedge(*command)
    return bundle


def unplugged() -> Camera:
    """A camera that is not there; WatchedSource tries it again and again."""
    raise CameraFault("unplugged", "no camera", remedy="plug it in")


def run_line(
    bundle: Bundle,
    engine: Backend,
    source: MemorySource,
    policy: Policy,
    sink_path: Path,
    others: Sequence[FrameSource] = (),
) -> tuple[float, list[float], list[float]]:
    """Seconds, the engine's ms for each frame of ``source``, and seconds from each capture to its verdict written.

    ``others``: cameras beside it, closed when it has ended.
    """
    inspector = Inspector(bundle, engine, "fp32", threshold=0.9)
    sink = JsonLinesSink(sink_path, "benchmark", camera="memory", max_bytes=100_000_000, on_event=tell)

    def lane_of(name: str, source: FrameSource, settings: Settings) -> Lane:
        stream = Stream(source, policy=policy, camera=name, on_event=silent)
        return Lane(name, source, stream, inspector, settings, on_event=silent, forgives=True)

    lanes = [lane_of("memory", source, Settings(rules=Rules(), sinks=[sink]))]
    lanes += [lane_of(f"other{i}", other, Settings(rules=Rules())) for i, other in enumerate(others)]
    infer_ms: list[float] = []  # inspections themselves would fill the memory with maps
    ages_s: list[float] = []

    def note(lane: Lane, inspection: Inspection) -> None:
        if lane is lanes[0]:
            ages_s.append(time.monotonic() - inspection.frame.captured_at_s)
            infer_ms.append(inspection.times.infer_ms)
        if lanes[0].stream.counts.offered == source.frames:
            for other in others:
                other.close()

    started_s = time.monotonic()
    counts = serve(lanes, drain_s=5.0, on_shown=note, close_sinks=sink.close)
    assert counts[0].judged == len(infer_ms) > 0 and counts[0].offered == counts[0].judged + counts[0].dropped
    return time.monotonic() - started_s, infer_ms, ages_s


def silent(event: Event) -> None:
    """What befalls the dead camera is no news here."""


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=6000)
    args = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        bundle = open_bundle(make_bundle(folder))

        def fake() -> Backend:
            return FakeBackend(bundle.contract.graph)

        def measure(
            engine: Callable[[], Backend],
            frames: int,
            interval_s: float,
            policy: Policy,
            others: Sequence[FrameSource] = (),
        ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
            source = MemorySource(frames, interval_s)
            path = folder / f"{time.monotonic()}.jsonl"
            taken_s, infer_ms, ages_s = run_line(bundle, engine(), source, policy, path, others)
            return taken_s, np.array(ages_s) * 1e3, np.array(infer_ms)

        measure(fake, 500, 0.0, "every")
        used_s = time.process_time()
        rates = sorted(args.frames / measure(fake, args.frames, 0.0, "every")[0] for _ in range(ROUNDS))
        figures["frames_per_second"] = rates
        figures["cpu_ms_per_frame"] = (time.process_time() - used_s) / (ROUNDS * args.frames) * 1e3
        _, ages_ms, infer_ms = measure(fake, args.frames // 3, 0.005, "every")
        figures["added_ms"] = percentiles(ages_ms - infer_ms)
        quick = WatchLimits(retry_s=0.01, retry_cap_s=0.01)
        dead = [WatchedSource(f"dead{i}", unplugged, on_event=silent, limits=quick) for i in range(3)]
        _, ages_ms, infer_ms = measure(fake, args.frames // 3, 0.005, "every", dead)
        figures["beside_dead_ms"] = percentiles(ages_ms - infer_ms)
        _, ages_ms, infer_ms = measure(lambda: SlowBackend(bundle), args.frames // 3, CAMERA_INTERVAL_S, "latest")
        figures["latest_age_ms"] = percentiles(ages_ms)
        figures["latest_infer_ms"] = percentiles(infer_ms)
        figures["latest_excess_ms"] = percentiles(ages_ms - infer_ms - CAMERA_INTERVAL_S * 1e3)
    report(figures, args.frames)


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Median, p99 and the highest."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def report(figures: dict[str, object], frames: int) -> None:
    """The table and the files."""

    def cells(key: str) -> str:
        values = figures[key]
        assert isinstance(values, dict)
        return f"{values['p50']:.2f} | {values['p99']:.2f} | {values['max']:.2f}"

    rates = figures["frames_per_second"]
    assert isinstance(rates, list)
    rows = [
        f"{SIZE_HW[1]}x{SIZE_HW[0]} frames, fake engine, JSON-lines sink: "
        f"**{rates[ROUNDS // 2]:.0f} frames/s** (median of {ROUNDS} times {frames} frames; "
        f"{rates[0]:.0f} to {rates[-1]:.0f}), "
        f"{figures['cpu_ms_per_frame']:.2f} ms of one core each (all threads, with the making of frames).",
        "",
        "| | median ms | p99 ms | max ms |",
        "|---|---|---|---|",
        f"| added latency at 200 frames/s: capture to verdict written, less the engine | {cells('added_ms')} |",
        f"| the same beside three dead cameras that are opened 100 times a second | {cells('beside_dead_ms')} |",
        f"| `latest`, frame every {CAMERA_INTERVAL_S * 1e3:.1f} ms, engine {SLOW_S * 1e3:.0f} ms: age at the verdict "
        f"| {cells('latest_age_ms')} |",
        f"| the same, beyond its inference time and one frame interval | {cells('latest_excess_ms')} |",
    ]
    write_results("line_overhead", "\n".join(rows), figures, ("numpy", "opencv-python-headless", "msgspec"))


if __name__ == "__main__":
    main()
