"""The first minute of a bundle on the line, by a clock of the test's own: which cameras count as lost."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from rdedge.deploy.watch import Expected, Look, watch
from rdedge.errors import DeployError

SECONDS = 3.0
BOTH, TOP = frozenset({"top", "side"}), frozenset({"top"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``now_s`` goes on only while somebody sleeps."""
    clock = SimpleNamespace(now_s=100.0, monotonic=lambda: clock.now_s)
    clock.sleep = lambda seconds: setattr(clock, "now_s", clock.now_s + seconds)
    monkeypatch.setattr("rdedge.deploy.watch.time", clock)
    return clock


def watched(clock: SimpleNamespace, down_s: tuple[float, float]) -> str:
    """A watch of three seconds, between which seconds of it the camera ``side`` is down."""
    started_s = clock.now_s
    looks = itertools.count(1)

    def ask() -> Look:
        passed_s = clock.now_s - started_s
        up = TOP if down_s[0] <= passed_s <= down_s[1] else BOTH
        return Look(uptime_s=passed_s, bundles=frozenset({"new"}), cameras_up=up, judged=10 * next(looks))

    before = Look(uptime_s=1000.0, bundles=frozenset({"old"}), cameras_up=BOTH)
    expected = Expected(
        contract_sha256="new", restarted_s=started_s - 1.0, before=before, seconds=SECONDS, max_reject_rate=0.5
    )
    return watch(ask, expected)


@pytest.mark.parametrize("down_s", [(0.0, 2.0), (1.0, SECONDS), (SECONDS, SECONDS + 2.0)])
def test_a_camera_that_comes_back_is_not_lost(clock: SimpleNamespace, down_s: tuple[float, float]) -> None:
    assert "0 rejected" in watched(clock, down_s)
    assert clock.now_s - 100.0 <= max(SECONDS, down_s[1] + 0.5), "no longer than it takes"


@pytest.mark.parametrize("from_s", [0.0, 1.0, SECONDS])
def test_a_camera_that_stays_away_is_lost(clock: SimpleNamespace, from_s: float) -> None:
    with pytest.raises(DeployError, match="cameras that were well before are not: side"):
        watched(clock, (from_s, 1000.0))
    assert clock.now_s - 100.0 < SECONDS + 6.0
