"""What a bundle's graph must cost at least on boards that are not here, from NVIDIA's published rates.

Operations and bytes of each layer, the more expensive of the two by the device's rate, summed. The same sum with what
ONNX Runtime attains on this CPU, measured in the same run, must not be above what it really takes here: that checks the
count and the sum, and the run ends with an error where it fails.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from attainable import Attained, attained, kernels
from devices import DEVICES, Device
from layers import Layer, Precision, layers_of, precision_bytes
from rdedge.backends import open_backend
from rdedge.bundle import Bundle, open_bundle
from results_file import write_results

WARM_UP = 3
ROUNDS = 30

ASSUMPTIONS = (
    "dense rates, never sparse ones; the GPU alone, without DLA; the clocks of the power mode named by the source",
    "FP16: every tensor of two bytes. INT8: what passes a Q/DQ pair of the bundle's INT8 graph and the weights of the "
    "layers behind it one byte, those layers at the INT8 rate, all else as FP16",
    "depthwise convolutions and elementwise work at the rate of the CUDA cores",
    "FP32 without TF32, as `rdedge engine` builds it",
    "elementwise layers join the layer that makes their input, if nobody else reads it; constants are folded",
    "every layer reads its inputs and weights from memory and writes its output there, at the published bandwidth: "
    "what a large L2 keeps (24 MB on an RTX 4060) is faster than this",
    "each layer is started once, at an assumed cost; engine only: preprocessing, copies over PCIe (0.2 MB a frame), "
    "judging and sinks are the host's",
    "the check: layers at the fastest kernel of their precision, bytes at the fastest rate of sums of at least that "
    "size, so of whichever cache holds them; fastest time of both sides",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One precision on this CPU, in milliseconds: the bound, and the fastest and the median inference."""

    bound_ms: float
    fastest_ms: float
    median_ms: float

    @property
    def ratio(self) -> float:
        """Measured over bound; a bound that holds gives 1 or more."""
        return self.fastest_ms / self.bound_ms


def main() -> None:
    """Count, measure this CPU, predict, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--launch-us", type=float, default=3.0, help="assumed cost of starting a layer on a GPU (%(default)s)"
    )
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    layers = graph_layers(bundle)
    rates, times_s = measure_here(bundle, [precision for precision in ("fp32", "int8") if precision in layers])
    checks = {
        precision: Check(
            bound_ms=sum(cpu_layer_s(layer, rates, precision) for layer in layers[precision]) * 1e3,
            fastest_ms=float(np.min(seconds)) * 1e3,
            median_ms=float(np.median(seconds)) * 1e3,
        )
        for precision, seconds in times_s.items()
    }
    for precision, check in checks.items():
        if check.ratio < 1.0:
            raise SystemExit(
                f"{precision}: measured {check.fastest_ms:.2f} ms is below the bound of {check.bound_ms:.2f} ms: the "
                "count or the rates are wrong, nothing is written"
            )
    report(bundle.contract.model.name, layers, rates, checks, args.launch_us)


def graph_layers(bundle: Bundle) -> dict[Precision, list[Layer]]:
    """By precision: FP16 has the layers of FP32; INT8 those of the bundle's INT8 graph, where it has one."""
    found: dict[Precision, list[Layer]] = {}
    found["fp32"] = found["fp16"] = layers_of(onnx.load(bundle.graph_path("fp32")))
    if "int8" in bundle.contract.precisions:
        found["int8"] = layers_of(onnx.load(bundle.graph_path("int8")))
    return found


def layer_s(layer: Layer, device: Device, precision: Precision) -> float:
    """Seconds a layer takes at least."""
    in_precision: Precision = "fp16" if precision == "int8" and not layer.in_int8 else precision
    compute_s = layer.matrix_ops / device.rate(in_precision) + layer.vector_ops / device.vector_rate(precision)
    return max(compute_s, precision_bytes(layer, precision) / (device.gb_s * 1e9))


def cpu_layer_s(layer: Layer, rates: Attained, precision: Precision) -> float:
    """The same on this CPU, which has one rate for all it computes in float32."""
    matrix_rate = rates.ops_s["int8" if precision == "int8" and layer.in_int8 else "fp32"]
    compute_s = layer.matrix_ops / matrix_rate + layer.vector_ops / rates.ops_s["fp32"]
    return max(compute_s, rates.memory_s(precision_bytes(layer, precision)))


def measure_here(bundle: Bundle, precisions: Sequence[Precision]) -> tuple[Attained, dict[Precision, list[float]]]:
    """What ONNX Runtime attains, and the seconds of each inference, in rounds in turn: all meet the same noise."""
    measured = kernels()
    frame_u8 = np.random.default_rng(0).integers(0, 256, bundle.contract.graph.frame.shape, np.uint8)
    backends = [open_backend(bundle, precision=precision) for precision in precisions]
    works: list[Callable[[], object]] = [kernel.run for kernel in measured]
    works += [lambda backend=backend: backend.infer(frame_u8) for backend in backends]  # type: ignore[misc]
    rounds = np.array([[_seconds(work) for work in works] for _ in range(WARM_UP + ROUNDS)])[WARM_UP:]
    fastest_s = rounds[:, : len(measured)].min(axis=0).tolist()
    inferences = rounds[:, len(measured) :].T.tolist()
    return attained(measured, fastest_s), dict(zip(precisions, inferences, strict=True))


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


def report(
    model: str,
    layers: dict[Precision, list[Layer]],
    rates: Attained,
    checks: dict[Precision, Check],
    launch_us: float,
) -> None:
    """The graph, the check, a row a device, and the assumptions."""
    predicted = {
        name: {precision: predict(each, device, precision, launch_us) for precision, each in layers.items()}
        for name, device in DEVICES.items()
    }
    rows = [*_counted(model, layers), "", *_checked(rates, checks), ""]
    rows += [
        "Not measured, from published rates: milliseconds of one frame on the engine, by the roofline / with "
        f"{launch_us:g} us to start each layer; in brackets the share of the roofline that is memory's.",
        "",
        f"| device | {' | '.join(p.upper() for p in layers)} |",
        "|---" * (1 + len(layers)) + "|",
    ]
    for name, by_precision in predicted.items():
        cells = [
            f"{f['roofline_ms']:.2f} / {f['with_launches_ms']:.2f} ({f['memory_share']:.0%})"
            for f in by_precision.values()
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    if "int8" not in layers:
        rows += ["", "No INT8: the bundle holds no INT8 graph (`rdedge export --precision fp32,int8`)."]
    rows += ["", "Assumptions:", "", *(f"- {text}" for text in ASSUMPTIONS), "", "Rates (dense, 10^12/s; GB/s):", ""]
    rows += [
        f"- {n}: FP32 {d.fp32:g}, FP16 {d.fp16:g}, INT8 {d.int8:g}, FP16 of the CUDA cores {d.fp16_vector:g}; "
        f"{d.gb_s:g}. {d.source}"
        for n, d in DEVICES.items()
    ]
    figures: dict[str, object] = {
        "model": model,
        "layers": {precision: [layer.figures() for layer in each] for precision, each in layers.items()},
        "cpu": {"ops_s": rates.ops_s, "bytes_s": rates.bytes_s},
        "checks": {
            precision: {"bound_ms": c.bound_ms, "fastest_ms": c.fastest_ms, "median_ms": c.median_ms}
            for precision, c in checks.items()
        },
        "load_average": os.getloadavg()[0],
        "launch_us": launch_us,
        "predicted": predicted,
    }
    write_results(f"roofline_{model}".replace("-", "_"), "\n".join(rows), figures, ("onnx", "onnxruntime"))


def _counted(model: str, layers: dict[Precision, list[Layer]]) -> list[str]:
    work = sum(layer.matrix_ops + layer.vector_ops for layer in layers["fp32"])
    weights = sum(layer.weights for layer in layers["fp32"])
    moved = ", ".join(
        f"{sum(precision_bytes(v, p) for v in each) / 1e6:.1f} MB in {p.upper()}" for p, each in layers.items()
    )
    return [
        f"{model}: {work / 1e9:.2f} x 10^9 operations (two a multiply-add), {weights / 1e6:.2f} M weights, "
        f"{len(layers['fp32'])} layers after fusion; moved: {moved}.",
    ]


def _checked(rates: Attained, checks: dict[Precision, Check]) -> list[str]:
    (_, fastest), (_, slowest) = max(rates.bytes_s, key=lambda pair: pair[1]), rates.bytes_s[-1]
    return [
        f"Check on this CPU, where ONNX Runtime attains {rates.ops_s['fp32'] / 1e9:.0f} x 10^9 operations/s in FP32 "
        f"and {rates.ops_s['int8'] / 1e9:.0f} in INT8, and moves {fastest / 1e9:.0f} GB/s in cache, "
        f"{slowest / 1e9:.0f} of the largest sums (load average {os.getloadavg()[0]:.2f}):",
        "",
        "| graph | bound, ms | fastest inference, ms | median, ms | measured/bound |",
        "|---|---|---|---|---|",
        *(
            f"| {p.upper()} | {c.bound_ms:.2f} | {c.fastest_ms:.2f} | {c.median_ms:.2f} | **{c.ratio:.2f}** |"
            for p, c in checks.items()
        ),
    ]


if __name__ == "__main__":
    main()
