"""Every array made for one frame on its way from a source to its verdict: by which line, how large, and what for.

NumPy tells tracemalloc of its arrays, OpenCV's results among them. Each line of rdedge is charged with the most that
was held at once while it ran, so that temporaries count. What an engine holds inside, for all frames, is not seen.
Exits with 1 where a line makes an array that has no reason here.
"""

from __future__ import annotations

import argparse
import linecache
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import rdedge
from rdedge import Inspector
from rdedge.backends import BackendName
from rdedge.frames import Frame
from rdedge.sources import open_source
from results_file import write_results

ROOT = Path(rdedge.__file__).parent
LEAST_BYTES = 8192  # below it are Python's own objects
WARM_UP = 3

REASONS = {
    "images.read_bytes": "the file",
    "images._decode": "the picture, which is the line's until its verdict is out",
    "sources/video._read": "the picture, which is the line's until its verdict is out",
    "preprocess._resize_to": "the picture in the model's size, and in halves and twice that size on the way there",
    "preprocess.preprocess": "its colours in the graph's order",
    "backends/openvino.infer": "the answer, which is the caller's; the engine writes into it",
    "judge.masked": "the map without what is masked: the verdict's, while the engine's shows what was masked",
    "judge.find_regions": "of a reject: what lies above the limit and in each area's box, a byte a pixel; labels, four",
}
UNSEEN = {
    "onnxruntime": "ONNX Runtime reads the frame where it lies and hands its own array of the answer over.",
    "openvino": "OpenVINO reads the frame where it lies.",
}


@dataclass(frozen=True, slots=True)
class Allocation:
    """Arrays made while one line ran. ``where``: module and function, below the package."""

    where: str
    line: int
    text: str
    size: int


def main() -> None:
    """Trace the frames of a source, print what was made, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", help="folder or video; each of its first frames is traced")
    parser.add_argument("--frames", type=int, default=10)
    args = parser.parse_args()
    lines: list[str] = []
    figures: dict[str, object] = {}
    has_reasons = True
    for backend in _installed():
        per_frame, seen = traced(args.bundle, args.source, backend, args.frames)
        has_reasons &= all(allocation.where in REASONS for allocation in per_frame)
        lines += [*_table(backend, per_frame, seen), ""]
        figures[backend] = [[a.where, a.line, a.text, a.size] for a in per_frame]
    write_results("copies", "\n".join(lines), figures, ("opencv-python-headless", "onnxruntime", "openvino"))
    if not has_reasons:
        raise SystemExit("a line makes an array that has no reason in this program")


def _installed() -> list[BackendName]:
    return ["onnxruntime", "openvino"] if find_spec("openvino") else ["onnxruntime"]


def traced(bundle: Path, source: str, backend: BackendName, count: int) -> tuple[list[Allocation], int]:
    """The mean of the frames that follow the warm-up, and how many there were. Raises RdedgeError."""
    total: dict[tuple[str, int, str], int] = defaultdict(int)
    seen = 0
    with Inspector.open(bundle, backend=backend) as inspector:
        frames = iter(open_source(source))
        for index in range(WARM_UP + count):
            made = allocations(lambda: _one(inspector, frames))
            if made is None:
                break
            if index >= WARM_UP:
                seen += 1
                for each in made:
                    total[each.where, each.line, each.text] += each.size
    if not seen:
        raise SystemExit(f"{source}: more than {WARM_UP} frames are needed")
    return [Allocation(*place, size // seen) for place, size in total.items()], seen


def _one(inspector: Inspector, frames: Iterator[Frame]) -> bool:
    frame = next(frames, None)
    if frame is None:
        return False
    inspector.inspect_frame(frame)
    return True


def allocations(work: Callable[[], object]) -> list[Allocation] | None:
    """What the lines of rdedge make while ``work`` runs, in the order of their first; None where it answers False."""
    trace = _Trace()
    tracemalloc.start()
    sys.settrace(trace)
    try:
        answer = work()
    finally:
        sys.settrace(None)
        trace.charge(None)
        tracemalloc.stop()
    return None if answer is False else trace.found()


class _Trace:
    """Called by Python before each line, at each call and return; charges what was made since to the line before."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[CodeType, int], int] = defaultdict(int)
        self._running: tuple[CodeType, int] | None = None
        self._held = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> _Trace | None:
        """Of rdedge's own frames every line; what others make, their caller in rdedge is charged with."""
        is_ours = frame.f_code.co_filename.startswith(str(ROOT))
        if not is_ours:
            return None
        after: FrameType | None = frame.f_back if event == "return" else frame
        while after is not None and not after.f_code.co_filename.startswith(str(ROOT)):
            after = after.f_back
        self.charge(None if after is None else (after.f_code, after.f_lineno))
        return self

    def charge(self, following: tuple[CodeType, int] | None) -> None:
        """The line that ran, and go on to the next."""
        _, peak = tracemalloc.get_traced_memory()
        if self._running is not None and peak - self._held >= LEAST_BYTES:
            self._sizes[self._running] += peak - self._held
        self._running = following
        tracemalloc.reset_peak()
        self._held = tracemalloc.get_traced_memory()[0]

    def found(self) -> list[Allocation]:
        """A row a line."""
        rows = []
        for (code, line), size in self._sizes.items():
            module = Path(code.co_filename).relative_to(ROOT).with_suffix("")
            text = linecache.getline(code.co_filename, line).strip()
            rows.append(Allocation(f"{module.as_posix()}.{code.co_name}", line, text, size))
        return rows


def _table(backend: str, per_frame: list[Allocation], seen: int) -> list[str]:
    total = sum(allocation.size for allocation in per_frame)
    rows = [
        f"{backend}: {len(per_frame)} lines make arrays, {total:,} bytes a frame, mean of {seen}. {UNSEEN[backend]}",
        "",
        "| by | line | bytes | what for |",
        "|---|---|---|---|",
    ]
    for a in per_frame:
        text = a.text.replace("|", "\\|")
        rows.append(f"| {a.where}:{a.line} | `{text}` | {a.size:,} | {REASONS.get(a.where, '**no reason known**')} |")
    return rows


if __name__ == "__main__":
    main()
