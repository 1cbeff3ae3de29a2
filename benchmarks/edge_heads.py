"""What the edge model's heads cost: their graphs in ONNX Runtime, one frame at a time, interleaved."""

from __future__ import annotations

import argparse
import time
from typing import get_args

import numpy as np
import onnxruntime
import torch

from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_train.model import Detector, Head
from rdedge_train.teachers import load_teacher_weights
from results_file import write_results

SIZE_HW = (256, 256)


def main() -> None:
    """Time every head and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="edge-lite0")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    sessions, megabytes = {}, {}
    heads: tuple[Head, ...] = get_args(Head)
    for head in heads:
        torch.manual_seed(0)
        detector = Detector(args.model, SIZE_HW, head=head)
        load_teacher_weights(detector.teacher, args.model, "random:0")
        graph = onnx_graph(detector, graph_spec(SIZE_HW))
        megabytes[head] = len(graph) / 1e6
        sessions[head] = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    frames_u8 = np.random.default_rng(0).integers(0, 256, (8, 1, *SIZE_HW, 3), dtype=np.uint8)
    times_ms: dict[Head, list[float]] = {head: [] for head in heads}
    for i in range(args.rounds + 10):
        for head in heads:
            started = time.perf_counter()
            sessions[head].run(None, {"frame": frames_u8[i % len(frames_u8)]})
            if i >= 10:  # the first warm up
                times_ms[head].append((time.perf_counter() - started) * 1e3)
    rows = ["| head | graph, MB | median, ms | p95, ms | median ratio to position |", "|---|---|---|---|---|"]
    base = np.array(times_ms["position"])
    for head in heads:
        median, p95 = np.percentile(times_ms[head], [50, 95])
        ratio = np.median(np.array(times_ms[head]) / base)
        rows.append(f"| {head} | {megabytes[head]:.1f} | {median:.2f} | {p95:.2f} | {ratio:.2f} |")
    text = f"{args.model}, untrained, {SIZE_HW[0]}x{SIZE_HW[1]}, {args.rounds} rounds, {args.threads} thread.\n\n"
    write_results("edge_heads", text + "\n".join(rows), {"times_ms": times_ms, "mb": megabytes}, ("onnxruntime",))


if __name__ == "__main__":
    main()
