"""``rdedge check-camera``: looks at a still scene for a hundred frames and says if the camera is fit to train on."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from rdedge.errors import ImageError, SourceError, UsageError
from rdedge.frames import Frame
from rdedge.sources import Camera, SourceInfo, is_camera, open_camera, open_source
from rdedge.stillness import Check, Stillness
from rdedge.text import printable

EXIT_UNFIT = 1
_LEAST_FRAMES = 20
_WARM_UP_S = 1.0  # automatic exposure settles; buffers run empty


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("source", metavar="SOURCE", help="camera, or a video of a scene that stands still")
    parser.add_argument("--frames", type=int, default=100, metavar="N", help="how many to look at (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")


def execute(args: argparse.Namespace) -> int:
    """Prints the measurements; 0 if the camera is fit to train on, else 1. Raises RdedgeError where there are none."""
    if args.frames < _LEAST_FRAMES:
        raise UsageError(f"{args.frames} frames", remedy=f"look at {_LEAST_FRAMES} at least")
    if args.source.startswith("trigger+"):
        raise UsageError("a trigger gives no still scene", remedy="check the camera without trigger+")
    report = _examined(args.source, args.frames)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.show()
    return 0 if report.is_fit else EXIT_UNFIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was seen of one camera."""

    source: str
    frames: int
    size_hw: tuple[int, int]
    fps: float | None
    checks: list[Check]

    @property
    def is_fit(self) -> bool:
        return all(check.is_ok for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """A value that could not be measured is null."""
        checks = [
            dataclasses.asdict(check)
            | {"ok": check.is_ok, "value": check.value if math.isfinite(check.value) else None}
            for check in self.checks
        ]
        own = {"source": self.source, "frames": self.frames, "size_hw": self.size_hw, "fps": self.fps}
        return own | {"fit": self.is_fit, "checks": checks}

    def show(self) -> None:
        """A line a quality, then the verdict."""
        height, width = self.size_hw
        rate = "" if self.fps is None else f", {self.fps:.4g} frames/s"
        print(f"{printable(self.source)}: {self.frames} frames of {width}x{height}{rate}\n")
        for check in self.checks:
            value = f"{check.value:.3g}" if math.isfinite(check.value) else "no edges"
            verdict = "ok" if check.is_ok else f"NOT OK -> {check.remedy}"
            print(f"{check.name:<16} {value:>9}  at most {check.limit:<5g} {check.unit:<14} {verdict}")
        bad = ", ".join(check.name for check in self.checks if not check.is_ok)
        print(f"\nnot fit to train on: {bad}" if bad else "\nfit to train on")


def _examined(uri: str, frames: int) -> Report:
    """Raises RdedgeError: a fault of the camera is not waited for here."""
    if not is_camera(uri):
        with closing(open_source(uri)) as source:
            return _report(source.name, iter(source), frames, lambda: source.info, is_live=False)
    with closing(open_camera(uri)) as camera:
        live = _Live(camera)
        return _report(camera.name, iter(live), frames, live.info, is_live=True)


class _Live:
    """A camera's frames from when it has warmed up; a damaged one counts as lost."""

    def __init__(self, camera: Camera):
        self._camera = camera
        self._damaged = self._lost_before = 0

    def __iter__(self) -> Iterator[Frame]:
        warm_s = time.monotonic() + _WARM_UP_S
        is_warm = False
        while True:
            try:
                frame = self._camera.read()
            except ImageError:
                self._damaged += is_warm
                continue
            if frame is None:
                return
            if is_warm:
                yield frame
            elif time.monotonic() > warm_s:
                is_warm = True
                self._lost_before = self._camera.info.lost

    def info(self) -> SourceInfo:
        info = self._camera.info
        return dataclasses.replace(info, lost=info.lost - self._lost_before + self._damaged)


def _report(name: str, frames: Iterator[Frame], count: int, info: Callable[[], SourceInfo], *, is_live: bool) -> Report:
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{name}: gave no frames", remedy="check the camera")
    stillness, seen = Stillness(first), 1
    height, width = first.image_bgr_u8.shape[:2]
    for frame in itertools.islice(frames, count - 1):
        if frame.image_bgr_u8.shape != first.image_bgr_u8.shape:
            raise SourceError(f"{name}: its frames change their size", remedy="name one camera or one video")
        stillness.add(frame)
        seen += 1
    if seen < count:
        raise SourceError(f"{name}: gave {seen} of {count} frames", remedy="ask for fewer with --frames")
    device = info()
    checks = stillness.checks(max(device.lost, stillness.missing()) if is_live else 0)
    return Report(source=name, frames=seen, size_hw=(height, width), fps=device.fps, checks=checks)
