"""An engine for several frames a call: each gets its own answer, alone and with two calls under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frame_streams import assert_same, frames

from rdedge.backends import PipelinedBackend, open_backend
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.errors import BackendError
from rdedge.threshold import fit_thresholds
from rdedge_export import selftest_engine
from rdedge_export.engine_build import build_engine

BATCH = 4  # of the six calibration frames, the second batch is half full


@pytest.fixture
def many(install_tensorrt: Any, write_engine_bundle: Any) -> Path:
    install_tensorrt("10.3.0")
    folder: Path = write_engine_bundle("many", batch=BATCH)
    return folder


def test_its_thresholds_count_each_part_once(many: Path) -> None:
    bundle = open_bundle(many)
    record, _ = build_engine(
        bundle, "fp16", "tensorrt", workspace_mb=None, if_needed=False,
        progress=lambda *step: None, say=lambda text: None,
    )  # fmt: skip
    assert record.check.frames == record.image_threshold.parts == 6
    maps = 1.0 - bundle.calibration_frames().mean(axis=3) / 255.0
    expected, _ = fit_thresholds(maps.astype(np.float32), maps.max(axis=(1, 2)).astype(np.float32), 0.01)
    assert record.image_threshold.value == pytest.approx(expected.value, abs=1e-3)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_each_frame_gets_its_own_answer(many: Path, memory: None, in_flight: int) -> None:
    bundle = open_bundle(many)
    assert main(["engine", str(many), "--precision", "fp32"]) == 0
    backend = open_backend(bundle, backend="tensorrt", frames_in_flight=in_flight)
    reference = open_backend(bundle)
    expected = [reference.infer(batch_u8) for batch_u8 in frames(8, batch=BATCH)]
    if in_flight == 1:
        for batch_u8, answer in zip(frames(8, batch=BATCH), expected, strict=True):
            assert_same(backend.infer(batch_u8), answer)
    else:
        assert isinstance(backend, PipelinedBackend)
        for index, batch_u8 in enumerate(frames(8, batch=BATCH)):
            backend.start(batch_u8)
            if index:
                assert_same(backend.finish(), expected[index - 1])
        assert_same(backend.finish(), expected[-1])
    with pytest.raises(BackendError, match=r"frame is uint8 \(1, 32, 48, 3\), the engine expects uint8 \(4, 32"):
        backend.infer(next(frames(1)))
    backend.close()


def test_the_selftest_passes(many: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_engine, "_MAX_SLOWDOWN", float("inf"))  # this machine is shared
    assert main(["selftest", str(many), "--seconds", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "batches of 4: p50" in out and "batches of 4 two at a time" in out and out.endswith("11 passed, 0 failed\n")
