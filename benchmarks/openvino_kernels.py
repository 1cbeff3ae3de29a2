"""Where OpenVINO spends a frame, by kind of kernel: what is left to gain beside the products, which any engine pays.

By the plugin's own clocks (PERF_COUNT), which cost a little themselves.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from rdedge.backends import openvino
from rdedge.bundle import open_bundle
from rdedge.errors import RdedgeError
from results_file import write_results

_WARM_UP = 5


def main() -> None:
    """Run the frames, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graph", type=Path, help="another file of the same graph (default: the bundle's INT8 one)")
    parser.add_argument("--frames", type=int, default=40)
    args = parser.parse_args()
    try:
        bundle = open_bundle(args.bundle)
        graph = args.graph or bundle.graph_path("int8")
    except RdedgeError as exc:
        raise SystemExit(str(exc)) from exc
    openvino._CONFIG["PERF_COUNT"] = "YES"
    backend = openvino.OpenVinoBackend(graph, bundle.contract.graph)
    frame_u8 = np.random.default_rng(0).integers(0, 256, bundle.contract.graph.frame.shape, dtype=np.uint8)
    seconds: Counter[tuple[str, str]] = Counter()
    count: Counter[tuple[str, str]] = Counter()
    for index in range(-_WARM_UP, args.frames):
        backend.infer(frame_u8)
        for node in backend._request.profiling_info if index >= 0 else ():
            kernel = node.node_type, node.exec_type
            seconds[kernel] += node.real_time.total_seconds()
            count[kernel] += bool(node.real_time)
    rows = ["| node | kernel | of them | ms a frame | share |", "|---|---|---|---|---|"]
    whole = sum(seconds.values())
    shown = [kernel for kernel, total in seconds.most_common() if total >= whole / 1000]
    for kernel in shown:
        total = seconds[kernel]
        cells = f"{kernel[0]} | {kernel[1]} | {count[kernel] / args.frames:.0f}"
        rows.append(f"| {cells} | {total / args.frames * 1e3:.2f} | {total / whole:.1%} |")
    rows.append(f"| all | | | {whole / args.frames * 1e3:.2f} | |")
    figures: dict[str, object] = {" ".join(kernel): seconds[kernel] / args.frames * 1e3 for kernel in shown}
    about = " ".join((__doc__ or "").split())
    model = bundle.contract.model.name.replace("-", "_")
    write_results(f"openvino_kernels_{model}", f"{about}\n\n" + "\n".join(rows), figures, ("openvino",))


if __name__ == "__main__":
    main()
