"""`rdedge bench` on the pretend GPU: what the device took comes from its own events, on the path of the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_kernels import refuse, report
from frame_streams import assert_same_stream, frames

from rdedge.backends import open_backend
from rdedge.bench.record import read_record
from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.errors import BackendError


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_devices_time_stands_beside_the_hosts(
    precision: str, memory: None, pace: None, install_tensorrt: Any, engine_bundle: Path, build: Any, tmp_path: Path
) -> None:
    install_tensorrt("10.3.0")
    build(precision)
    launched = report()["graph_launches"]
    out = tmp_path / "measurement.json"
    options = ["--backend", "tensorrt", "--precision", precision, "--cold-starts", "0", "--json", str(out)]
    assert main(["bench", str(engine_bundle), "--frames", "20", "--warm-up", "5", *options]) == 0
    record = read_record(out)
    (phase,) = record.phases
    assert len(phase.times_ms["device"]) == 20 and min(phase.times_ms["device"]) > 0
    for device_ms, engine_ms in zip(phase.times_ms["device"], phase.times_ms["engine"], strict=True):
        assert device_ms <= engine_ms + 0.01, "the host waits for the device"
    assert list(record.device_parts_ms) == ["upload", "inference", "download"]
    assert {len(times) for times in record.device_parts_ms.values()} == {20}
    assert min(record.device_parts_ms["inference"]) > 0
    assert report()["graph_launches"] - launched >= 25, "frames of the line are replayed, as on the line"
    assert record.memory.device_mb is not None and record.memory.device_mb >= 0
    assert record.versions["tensorrt"] == "10.3.0" and "pycuda" in record.versions


def test_parts_leave_the_backend_as_it_was(
    memory: None, pace: None, built: Any, engine_bundle: Path, open_built: Any
) -> None:
    backend, reference = open_built(), open_backend(open_bundle(engine_bundle))
    launched = report()["graph_launches"]
    for frame in frames(3):
        upload_ms, inference_ms, download_ms = backend.parts_ms(frame)
        assert upload_ms >= 0 and inference_ms > 0 and download_ms >= 0
    assert report()["graph_launches"] == launched, "events lie between the parts only where frames are enqueued plainly"
    assert_same_stream(backend, reference, 5)
    assert report()["graph_launches"] == launched + 5


def test_parts_that_fail_leave_it_whole(built: Any, engine_bundle: Path, open_built: Any) -> None:
    backend, reference = open_built(), open_backend(open_bundle(engine_bundle))
    (frame,) = frames(1)
    refuse("cuEventRecord", skip=1)
    with pytest.raises(BackendError, match="inference failed"):
        backend.parts_ms(frame)
    refuse("")
    assert_same_stream(backend, reference, 3)
    launched = report()["graph_launches"]
    backend.infer(np.zeros_like(frame))
    assert report()["graph_launches"] == launched + 1


def test_parts_are_refused_while_a_frame_is_under_way(built: Any, open_built: Any) -> None:
    backend = open_built(frames_in_flight=2)
    (frame,) = frames(1)
    backend.start(frame)
    with pytest.raises(BackendError, match="another frame is under way"):
        backend.parts_ms(frame)
    backend.finish()
