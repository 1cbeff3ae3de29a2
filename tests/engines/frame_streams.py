"""Frames without end, and backends compared on them to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rdedge.backends import Backend, PipelinedBackend, Prediction


def frames(count: int, seed: int = 1, batch: int = 1) -> Iterator[np.ndarray]:
    source = np.random.default_rng(seed)
    for _ in range(count):
        yield source.integers(0, 256, (batch, 32, 48, 3), dtype=np.uint8)


def assert_same(got: Prediction, expected: Prediction) -> None:
    assert got.anomaly_map.dtype == got.score.dtype == np.float32
    assert got.anomaly_map.tobytes() == expected.anomaly_map.tobytes()
    assert got.score.tobytes() == expected.score.tobytes()


def assert_same_stream(backend: Backend, reference: Backend, count: int, seed: int = 1) -> None:
    for frame in frames(count, seed):
        assert_same(backend.infer(frame), reference.infer(frame))


def assert_same_pipeline(backend: PipelinedBackend, reference: Backend, count: int, seed: int = 1) -> None:
    """As many frames under way as go; each array is overwritten as soon as it was handed over."""
    expected: list[Prediction] = []
    for frame in frames(count, seed):
        expected.append(reference.infer(frame))
        backend.start(frame)
        frame[:] = 0
        if len(expected) == backend.frames_in_flight:
            assert_same(backend.finish(), expected.pop(0))
    for answer in expected:
        assert_same(backend.finish(), answer)
