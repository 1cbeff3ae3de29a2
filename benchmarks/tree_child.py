"""tree_child.py BUNDLE: one side of compare_trees.py. Judges some frames for every line of stdin, answers with times.

Uses only what every tree has, and is the same file for both: their packages come by PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

FRAME_HW = (1080, 1920)
STAGES = ("preprocess", "engine", "judge", "frame to verdict")
_IN_A_ROW = 10


def serve(bundle: str) -> None:
    """Says "ready" after the first verdict, then answers until stdin ends."""
    from rdedge import Frame, Inspector

    picture = np.random.default_rng(0).integers(96, 160, (*FRAME_HW, 3), np.uint8)
    with Inspector.open(bundle) as inspector:
        inspector.inspect(picture)
        print("ready", flush=True)
        for _ in sys.stdin:
            answers: dict[str, list[float]] = {stage: [] for stage in STAGES}
            for index in range(_IN_A_ROW):
                frame = Frame(image_bgr_u8=picture, index=index, captured_at_s=time.monotonic(), source="memory")
                started = time.perf_counter()
                times = inspector.inspect_frame(frame).times
                whole_ms = (time.perf_counter() - started) * 1e3
                row = (times.preprocess_ms, times.infer_ms, times.judge_ms, whole_ms)
                for stage, ms in zip(STAGES, row, strict=True):
                    answers[stage].append(ms)
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
