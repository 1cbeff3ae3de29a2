"""What a bundle's graph must cost at least on boards that are not here, from NVIDIA's published rates.

Operations and bytes of each layer, the more expensive of the two by the device's rate, summed. The same sum with this
CPU's own rates, measured in the same run, against what ONNX Runtime really takes here, is the check.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from layers import Layer, Precision, layers_of, precision_bytes
from rdedge.backends import open_backend
from rdedge.bundle import open_bundle
from results_file import write_results

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
GEMM_SIDE = 1024
COPY_BYTES = 64 << 20
WARM_UP = 3
ROUNDS = 30

ASSUMPTIONS = (
    "the documents named were read in quotations, not all of them in the original",
    "dense rates, never sparse ones; the GPU alone, without DLA; the clocks of the fastest power mode",
    "FP16: every tensor of two bytes. INT8: convolutions and products read and write one byte, the rest as FP16",
    "depthwise convolutions and elementwise work at the FP32 rate of the CUDA cores in every precision",
    "FP32 without TF32, as `rdedge engine` builds it",
    "elementwise layers join the layer that makes their input, if nobody else reads it; constants are folded",
    "every layer reads its inputs and weights from memory and writes its output there: what a large L2 keeps (24 MB on "
    "an RTX 4060) is faster than this",
    "engine only: preprocessing, copies over PCIe (0.2 MB a frame), judging and sinks are the host's",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Published dense rates in 10^12 operations a second and memory bandwidth in GB/s, and where they stand."""

    fp32: float
    fp16: float
    int8: float
    gb_s: float
    source: str

    def rate(self, precision: Precision) -> float:
        """Operations a second on matrices."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision] * 1e12


_SUPER = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
DEVICES = {
    "Orin Nano 8 GB": Device(
        fp32=1.3, fp16=10.0, int8=20.0, gb_s=68.0, source=f"{_SUPER} (20 dense TOPS; FP32: 1024 cores x 2 x 635 MHz)"
    ),
    "Orin Nano 8 GB Super": Device(
        fp32=2.1, fp16=17.0, int8=33.0, gb_s=102.0, source=f"{_SUPER} (33 dense TOPS; FP32: 1024 cores x 2 x 1020 MHz)"
    ),
    "Orin NX 16 GB": Device(
        fp32=1.9,
        fp16=15.0,
        int8=30.0,
        gb_s=102.4,
        source="Jetson Orin NX Series Data Sheet DS-10712-001 (32 tensor cores as the Nano's at 918 MHz; its 100 TOPS "
        "are sparse and count the DLAs)",
    ),
    "AGX Orin 64 GB": Device(
        fp32=5.3,
        fp16=42.5,
        int8=85.0,
        gb_s=204.8,
        source="Jetson AGX Orin Series Technical Brief v1.2 (GPU: 170 sparse TOPS, half of it dense)",
    ),
    "AGX Thor": Device(
        fp32=8.0,
        fp16=258.0,
        int8=517.0,
        gb_s=273.0,
        source="https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/"
        " (T5000: sparse INT8 1035, sparse FP16 517, half of each dense; FP32: 2560 cores x 2 x 1.57 GHz)",
    ),
    "RTX 4060": Device(
        fp32=15.1,
        fp16=30.0,
        int8=121.0,
        gb_s=272.0,
        source="https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/ (242 sparse TOPS) and "
        "NVIDIA Ada GPU Architecture whitepaper (FP16 with FP32 accumulation at half the rate)",
    ),
}


def main() -> None:
    """Count, measure this CPU, predict, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--launch-us", type=float, default=3.0, help="assumed cost of starting a layer on a GPU (%(default)s)"
    )
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    layers = layers_of(onnx.load(bundle.graph_path("fp32")))
    ops_s, bytes_s, measured_ms = measure_here(args.bundle)
    cpu = Device(fp32=ops_s / 1e12, fp16=0.0, int8=0.0, gb_s=bytes_s / 1e9, source="measured in this run")
    bound_ms = sum(layer_s(layer, cpu, "fp32", matrix_only=True) for layer in layers) * 1e3
    report(bundle.contract.model.name, layers, cpu, (bound_ms, measured_ms), args.launch_us)


def layer_s(layer: Layer, device: Device, precision: Precision, *, matrix_only: bool = False) -> float:
    """Seconds a layer takes at least. ``matrix_only``: the device has one rate for all that it computes (a CPU)."""
    vector_rate = device.fp32 * 1e12
    matrix_rate = vector_rate if matrix_only else device.rate(precision)
    compute_s = layer.matrix_ops / matrix_rate + layer.vector_ops / vector_rate
    return max(compute_s, precision_bytes(layer, precision) / (device.gb_s * 1e9))


def measure_here(bundle: Path) -> tuple[float, float, float]:
    """This CPU's float32 operations a second in a matrix product, the bytes a second that all its cores read and write
    in copies, and ONNX Runtime's milliseconds; medians of rounds in turn, so that all meet the same noise."""
    a, b = (np.random.default_rng(k).random((GEMM_SIDE, GEMM_SIDE), np.float32) for k in (0, 1))
    product = np.empty_like(a)
    cores = os.cpu_count() or 1
    sources = [np.ones(COPY_BYTES // cores, np.uint8) for _ in range(cores)]
    targets = [np.ones_like(source) for source in sources]
    opened = open_bundle(bundle)
    backend = open_backend(opened)
    frame_u8 = np.random.default_rng(0).integers(0, 256, opened.contract.graph.frame.shape, np.uint8)
    with ThreadPoolExecutor(cores) as pool:
        works: tuple[Callable[[], object], ...] = (
            lambda: np.matmul(a, b, out=product),
            lambda: list(pool.map(np.copyto, targets, sources)),
            lambda: backend.infer(frame_u8),
        )
        times_s = [[_seconds(work) for work in works] for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    product_s, copy_s, inference_s = np.median(times_s, axis=0).tolist()
    return 2.0 * GEMM_SIDE**3 / product_s, 2.0 * sum(map(len, sources)) / copy_s, inference_s * 1e3


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def predict(layers: Sequence[Layer], device: Device, precision: Precision, launch_us: float) -> dict[str, float]:
    """Milliseconds by the roofline, of it bound by memory, and with a start for each layer."""
    times_s = [layer_s(layer, device, precision) for layer in layers]
    by_memory = [
        s
        for s, layer in zip(times_s, layers, strict=True)
        if s <= precision_bytes(layer, precision) / device.gb_s / 1e9
    ]
    roof_ms = sum(times_s) * 1e3
    launches_ms = len(layers) * launch_us / 1e3
    return {
        "roofline_ms": roof_ms,
        "memory_share": sum(by_memory) / sum(times_s),
        "with_launches_ms": roof_ms + launches_ms,
    }


def report(model: str, layers: list[Layer], cpu: Device, check_ms: tuple[float, float], launch_us: float) -> None:
    """The graph, the check, a row a device, and the assumptions."""
    bound_ms, measured_ms = check_ms
    predicted = {
        name: {precision: predict(layers, device, precision, launch_us) for precision in PRECISIONS}
        for name, device in DEVICES.items()
    }
    work = sum(layer.matrix_ops + layer.vector_ops for layer in layers)
    weights = sum(layer.weights for layer in layers)
    rows = [
        f"{model}: {work / 1e9:.2f} x 10^9 operations (two a multiply-add), {weights / 1e6:.2f} M weights, "
        f"{len(layers)} layers after fusion, "
        + ", ".join(
            f"{sum(precision_bytes(v, p) for v in layers) / 1e6:.1f} MB moved in {p.upper()}" for p in PRECISIONS
        )
        + ".",
        "",
        f"Check on this CPU, whose float32 product does {cpu.fp32 * 1e3:.1f} x 10^9 operations/s and whose copies move "
        f"{cpu.gb_s:.1f} GB/s in this run: roofline {bound_ms:.2f} ms, ONNX Runtime {measured_ms:.2f} ms, "
        f"**measured/roofline {measured_ms / bound_ms:.2f}**.",
        "",
        "Not measured, from published rates: milliseconds of one frame on the engine, by the roofline / with "
        f"{launch_us:g} us to start each layer; in brackets the share of the roofline that is memory's.",
        "",
        "| device | FP32 | FP16 | INT8 |",
        "|---|---|---|---|",
    ]
    for name, by_precision in predicted.items():
        cells = [
            f"{f['roofline_ms']:.2f} / {f['with_launches_ms']:.2f} ({f['memory_share']:.0%})"
            for f in by_precision.values()
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", "Assumptions:", "", *(f"- {text}" for text in ASSUMPTIONS), "", "Rates (dense, 10^12/s; GB/s):", ""]
    rows += [
        f"- {n}: FP32 {d.fp32:g}, FP16 {d.fp16:g}, INT8 {d.int8:g}; {d.gb_s:g}. {d.source}" for n, d in DEVICES.items()
    ]
    figures: dict[str, object] = {
        "model": model,
        "layers": [layer.figures() for layer in layers],
        "cpu": {"ops_s": cpu.fp32 * 1e12, "gb_s": cpu.gb_s, "roofline_ms": bound_ms, "measured_ms": measured_ms},
        "launch_us": launch_us,
        "predicted": predicted,
    }
    write_results(f"roofline_{model}".replace("-", "_"), "\n".join(rows), figures, ("onnx", "onnxruntime"))


if __name__ == "__main__":
    main()
