"""What an engine is to the line: one method and a close. Checks are here, library calls in each backend's module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rdedge.contract import GraphSpec, TensorSpec
from rdedge.errors import BackendError
from rdedge.good_parts import Threshold

EXPORT_AGAIN = "export the bundle again with `rdedge export`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Raw answer for a batch; the caller owns the arrays.

    ``anomaly_map``: float32 (N, 1, H, W); ``score``: float32 (N,). Unbounded above zero, comparable only with the
    thresholds of the same graph.
    """

    anomaly_map: NDArray[np.float32]
    score: NDArray[np.float32]


class Backend(Protocol):
    """An engine ready to run. Not thread-safe: one thread uses it."""

    name: str

    @property
    def thresholds(self) -> tuple[Threshold, Threshold] | None:
        """Image and pixel threshold fitted on this engine's own answers; None: those of the bundle hold."""

    def infer(self, frame_u8: NDArray[np.uint8]) -> Prediction:
        """Frames uint8 (N, H, W, 3) RGB as the contract says -> Prediction.

        Raises BackendError; never returns stale data.
        """

    def close(self) -> None:
        """Free what the engine holds; may be called twice."""


@runtime_checkable
class PipelinedBackend(Backend, Protocol):
    """A backend that takes frames while others are under way, for throughput."""

    frames_in_flight: int  # at most so many

    @property
    def under_way(self) -> int:
        """Frames started and not finished."""

    def start(self, frame_u8: NDArray[np.uint8]) -> None:
        """Put a frame like ``infer``'s under way; the array is the caller's again at once.

        Raises BackendError, and the frame is not under way then; those before it still are.
        """

    def finish(self) -> Prediction:
        """Wait for the oldest frame under way: its answer.

        Raises BackendError if that frame failed: it is gone then, and the next call is about the next frame.
        """


def check_frame(frame_u8: NDArray[np.uint8], expected: TensorSpec) -> None:
    """Raises BackendError unless dtype, shape and layout are what the contract says."""
    if frame_u8.dtype != np.uint8 or frame_u8.shape != expected.shape or not frame_u8.flags.c_contiguous:
        raise BackendError(
            f"frame is {frame_u8.dtype} {frame_u8.shape}, "
            f"the engine expects {expected.dtype} {expected.shape}, C-contiguous",
            remedy="pass pictures through rdedge.preprocess",
        )


def check_tensors(
    graph: GraphSpec, actual: Mapping[str, tuple[str, tuple[int, ...]]], types: Mapping[str, str], graph_path: Path
) -> None:
    """``actual``: type and shape of each tensor, as the engine has them; ``types``: its words for ours.

    Raises BackendError where they are not those of ``graph``.
    """
    for spec in (graph.frame, graph.anomaly_map, graph.score):
        expected = (types[spec.dtype], spec.shape)
        if actual.get(spec.name) != expected:
            got = actual.get(spec.name, "no tensor of this name")
            raise BackendError(
                f"{graph_path}: tensor {spec.name} is {got}, the contract says {expected}", remedy=EXPORT_AGAIN
            )


def batches(frames_u8: NDArray[np.uint8], size: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Frames (n, H, W, 3) as a graph of a fixed batch takes them: (size, H, W, 3), and how many of it are meant.

    The last batch is filled up with its last frame, whose other answers nobody reads: zeros would be a frame that no
    camera gives.
    """
    for start in range(0, len(frames_u8), size):
        batch_u8 = frames_u8[start : start + size]
        count = len(batch_u8)
        if count < size:
            batch_u8 = np.concatenate([batch_u8, np.repeat(batch_u8[-1:], size - count, axis=0)])
        yield batch_u8, count


def infer_all(backend: Backend, frames_u8: NDArray[np.uint8], batch: int) -> Prediction:
    """Any number n >= 1 of frames through an engine for ``batch`` at a time -> Prediction of n. Raises BackendError."""
    maps, scores = [], []
    for batch_u8, count in batches(frames_u8, batch):
        answer = backend.infer(batch_u8)
        maps.append(answer.anomaly_map[:count])
        scores.append(answer.score[:count])
    if len(maps) == 1:  # spares the copy
        return Prediction(anomaly_map=maps[0], score=scores[0])
    return Prediction(anomaly_map=np.concatenate(maps), score=np.concatenate(scores))
