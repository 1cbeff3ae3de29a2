"""The soak of benchmarks/soak.py, short: nothing is kept of a frame once it is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdedge.bundle import open_bundle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FRAMES = 12_000


def test_memory_threads_and_files_do_not_grow(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    looks, counts = soak.soak(open_bundle(tiny_bundle), FRAMES, tmp_path / "out")
    assert sum(count.judged for count in counts) == FRAMES == sum(count.offered for count in counts)
    assert len(looks) == soak.SAMPLES
    settled = looks[soak.SAMPLES // 5 :]
    assert max(seen.threads for seen in settled) == settled[0].threads, "captures end a little earlier than the rest"
    assert settled[-1].files <= settled[0].files + 2, "two files may be in rotation"
    assert soak.growth(settled) < 0.02
    counted = [count for count in counts if count.rejected > 0]
    assert len(counted) == 2 and all(count.offered == count.judged for count in counts)
