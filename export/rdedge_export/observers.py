"""Ranges of activations over normal images: how large the values of each tensor get, and where to cut them off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from rdedge.errors import ExportError
from rdedge.fidelity import RangeMethod

RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
INT8_MAX = 127
_BINS = 2048
_LEVELS = 128  # magnitudes an INT8 value can have
_ENTROPY_STEP = 8  # bins from one candidate limit to the next


@dataclass(frozen=True, slots=True)
class Observed:
    """Magnitudes of tensors over ``images`` frames: the largest, and counts (2048,) from 0 to it."""

    absmax: Mapping[str, float]
    counts: Mapping[str, NDArray[np.int64]]
    images: int

    def limits(self, method: RangeMethod) -> dict[str, float]:
        """Where each tensor is cut off: a positive number, at most its largest magnitude.

        A tensor that is zero on every frame is cut off at 1: any scale represents it.
        """
        return {
            name: largest * _share_of_range(self.counts[name], method) if largest > 0.0 else 1.0
            for name, largest in self.absmax.items()
        }


def session(model: ModelProto) -> ort.InferenceSession:
    """The graph on the CPU with Q/DQ computed as written: FP32 arithmetic on values an INT8 engine would hold."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions share no base class
        raise ExportError(f"ONNX Runtime refuses the graph ({exc})", remedy="report this model") from exc


def largest_magnitudes(model: ModelProto, tensors: Sequence[str], frames_u8: NDArray[np.uint8]) -> dict[str, float]:
    """The largest magnitude of each tensor over frames uint8 (n, H, W, 3).

    Raises ExportError if there is no frame, a frame fails, or a value is not finite: never over fewer frames.
    """
    absmax = dict.fromkeys(tensors, 0.0)
    for values in _stream(model, tensors, frames_u8):
        for name, array in values.items():
            largest = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(largest):
                raise ExportError(f"tensor {name} holds NaN or infinity on a frame", remedy="train again")
            absmax[name] = max(absmax[name], largest)
    return absmax


def observe(model: ModelProto, tensors: Sequence[str], frames_u8: NDArray[np.uint8]) -> Observed:
    """Two passes over frames uint8 (n, H, W, 3): the ranges, then what is in them. Raises ExportError as above."""
    absmax = largest_magnitudes(model, tensors, frames_u8)
    counts = {name: np.zeros(_BINS, np.int64) for name in tensors}
    images = 0
    for values in _stream(model, tensors, frames_u8):
        for name, array in values.items():
            if absmax[name] > 0.0:
                bins = (np.abs(array).ravel() * np.float32(_BINS / absmax[name])).astype(np.int32)
                counts[name] += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
        images += 1
    if images != len(frames_u8):
        raise ExportError(f"{images} of {len(frames_u8)} calibration images were used", remedy="report this")
    return Observed(absmax=absmax, counts=counts, images=images)


def _stream(
    model: ModelProto, tensors: Sequence[str], frames_u8: NDArray[np.uint8]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The tensors' values, frame by frame; a graph for batches gets each frame in every place.

    Of a filled-up batch only the output says which values are whose.
    """
    if not len(frames_u8):
        raise ExportError("no calibration image", remedy="give good images with --calibration")
    tapped = ModelProto()
    tapped.CopyFrom(model)
    there = {output.name for output in model.graph.output}
    tapped.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in there)
    runner = session(tapped)
    (frame,) = model.graph.input
    batch = frame.type.tensor_type.shape.dim[0].dim_value
    for i, frame_u8 in enumerate(frames_u8):
        try:
            values = runner.run(list(tensors), {frame.name: np.repeat(frame_u8[np.newaxis], batch, axis=0)})
        except Exception as exc:  # onnxruntime's exceptions share no base class
            raise ExportError(
                f"calibration image {i} of {len(frames_u8)} failed ({exc})", remedy="check the calibration images"
            ) from exc
        yield dict(zip(tensors, values, strict=True))


def _share_of_range(counts: NDArray[np.int64], method: RangeMethod) -> float:
    if method == "minmax":
        return 1.0
    if method == "entropy":
        return _entropy_bins(counts) / _BINS
    within = np.cumsum(counts) / counts.sum()
    share = float(method.removeprefix("percentile-")) / 100
    return (int(np.searchsorted(within, share)) + 1) / _BINS


def _entropy_bins(counts: NDArray[np.int64]) -> int:
    """How many bins to keep so that 128 levels lose the least information (Kullback-Leibler divergence).

    S. Migacz, "8-bit inference with TensorRT", GTC 2017. Exact zeros, which ReLU makes in masses and every scale
    represents, would drown the rest: the first bin counts no more than the second.
    """
    counts = counts.astype(np.float64)
    counts[0] = min(counts[0], counts[1])
    if not counts.any():
        return _BINS  # but for zeros, only the largest values are there
    best, best_bins = np.inf, _BINS
    for bins in range(_LEVELS, _BINS + 1, _ENTROPY_STEP):
        kept = counts[:bins].copy()
        starts = np.arange(_LEVELS) * bins // _LEVELS
        is_used = kept > 0
        used = np.add.reduceat(is_used, starts, dtype=np.float64)
        sums = np.add.reduceat(kept, starts)
        level = np.searchsorted(starts, np.arange(bins), side="right") - 1
        quantised = np.where(is_used, (sums / np.maximum(used, 1.0))[level], 0.0)
        kept[-1] += counts[bins:].sum()
        divergence = _divergence(kept, quantised)
        if divergence < best:
            best, best_bins = divergence, bins
    return best_bins


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Of p from q, both made to sum to 1; infinite where q has nothing and p has."""
    if not q.any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    if (q[used] == 0).any():
        return np.inf
    return float((p[used] * np.log(p[used] / q[used])).sum())
