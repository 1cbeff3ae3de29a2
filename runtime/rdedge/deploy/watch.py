"""The first minute of a bundle on the line: is the line alive, does it run this bundle, does it judge as it should?"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rdedge.errors import DeployError
from rdedge.line.config import Metrics

MIN_JUDGED = 50  # frames before which a share of rejects says nothing
_START_S = 180.0  # for the engine to be loaded and the cameras to be opened
_SILENT_S = 15.0  # without an answer: the line is gone, or hangs
_POLL_S = 0.5
_REQUEST_S = 5.0
_RECOVERY_S = 5.0  # for a camera that is down at the end: one hiccup is no loss
_BACK = "see the line's log on the board"
_SAMPLE = re.compile(r"^rdedge_(\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Look:
    """A line at one moment. ``cameras_up``: those without a fault; counts are of all cameras since the line's start."""

    uptime_s: float
    bundles: frozenset[str]  # sha256 of the contracts by which it judges
    cameras_up: frozenset[str]
    thresholds: dict[str, float] = field(default_factory=dict)
    judged: int = 0
    rejected: int = 0
    skipped: int = 0
    offered: int = 0
    is_turning: bool = True


def look(metrics: Metrics) -> Look | None:
    """What a line's metrics and health say now; None: nobody answers there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(metrics.bind, metrics.bind)
    url = f"http://{f'[{host}]' if ':' in host else host}:{metrics.port}"
    try:
        text, health = _get(f"{url}/metrics"), json.loads(_get(f"{url}/healthz"))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    samples = [(m[1], dict(_LABEL.findall(m[2] or "")), float(m[3])) for m in _SAMPLE.finditer(text)]

    def total(name: str) -> int:
        return int(sum(value for family, _, value in samples if family == name))

    uptimes = [value for family, _, value in samples if family == "uptime_seconds"]
    if len(uptimes) != 1 or not isinstance(health, dict):
        return None  # another program's metrics
    return Look(
        uptime_s=uptimes[0],
        bundles=frozenset(labels["contract_sha256"] for family, labels, _ in samples if family == "bundle_info"),
        cameras_up=frozenset(labels["camera"] for family, labels, up in samples if family == "camera_up" and up),
        thresholds={labels["camera"]: value for family, labels, value in samples if family == "threshold"},
        judged=total("frames_judged_total"),
        rejected=total("frames_rejected_total"),
        skipped=total("frames_skipped_total"),
        offered=total("frames_offered_total"),
        is_turning=health.get("loop") == "turning",
    )


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the line is on this machine
    try:
        with opener.open(url, timeout=_REQUEST_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as exc:  # 503: not well, and it says why
        with exc:
            return exc.read().decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a line must show after it was told of a new bundle."""

    contract_sha256: str
    restarted_s: float  # time.monotonic before it was told; its uptime must be shorter
    before: Look | None  # the line with the old bundle; None: it did not run
    seconds: float
    max_reject_rate: float


def watch(ask: Callable[[], Look | None], expected: Expected) -> str:
    """Look at the line until its first ``seconds`` are over; returns what was seen. Raises DeployError at the first
    sign that the bundle does not do: the line stays away or hangs, starts anew, judges by another bundle, loses a
    camera that was well before (one that is down at the end may come back within seconds), rejects more than
    ``max_reject_rate``, or judges none of the frames that come."""
    seen = _first(ask, expected)
    answered_s = time.monotonic()
    ends_s = answered_s + expected.seconds
    while (left_s := ends_s - time.monotonic()) > 0.0 or (left_s > -_RECOVERY_S and _lost(seen, expected)):
        time.sleep(min(_POLL_S, left_s) if left_s > 0.0 else _POLL_S)
        now = ask()
        if now is None or not now.is_turning:
            if time.monotonic() - answered_s > _SILENT_S:
                raise DeployError(f"the line does not answer for {_SILENT_S:.0f} s", remedy=_BACK)
            continue
        answered_s = time.monotonic()
        if now.uptime_s < seen.uptime_s:
            raise DeployError(f"the line ended after {seen.uptime_s:.0f} s and was started again", remedy=_BACK)
        seen = now
        _check_rejects(seen, expected)
    if time.monotonic() - answered_s > 2 * _REQUEST_S:
        raise DeployError("the line has ceased to answer", remedy=_BACK)
    return _verdict(seen, expected)


def _first(ask: Callable[[], Look | None], expected: Expected) -> Look:
    """The first answer of the line that was started for the new bundle."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        now = ask()
        if now is not None and now.uptime_s < time.monotonic() - expected.restarted_s:
            if now.bundles and expected.contract_sha256 not in now.bundles:
                raise DeployError(
                    "the line was started again and does not judge by this bundle",
                    remedy="the line's file must name the link, and no camera of it another bundle",
                )
            return now
        time.sleep(_POLL_S)
    raise DeployError(f"the line did not start within {_START_S:.0f} s", remedy=_BACK)


def _check_rejects(now: Look, expected: Expected) -> None:
    if now.judged >= MIN_JUDGED and now.rejected > expected.max_reject_rate * now.judged:
        raise DeployError(
            f"the line rejects {now.rejected} of {now.judged} parts, {now.rejected / now.judged:.0%};"
            f" allowed are {expected.max_reject_rate:.0%}",
            remedy="look at the pictures of the rejects, or allow more with --max-reject-rate",
        )


def _lost(seen: Look, expected: Expected) -> list[str]:
    """Cameras that were well before and are not."""
    return sorted(expected.before.cameras_up - seen.cameras_up) if expected.before is not None else []


def _verdict(seen: Look, expected: Expected) -> str:
    if lost := _lost(seen, expected):
        raise DeployError(f"cameras that were well before are not: {', '.join(lost)}", remedy=_BACK)
    if seen.skipped and not seen.judged:
        raise DeployError(f"{seen.skipped} frames came and none could be judged", remedy=_BACK)
    few = "" if seen.judged >= MIN_JUDGED else f" (of so few the rate is not held against the limit; {MIN_JUDGED} are)"
    return f"{seen.judged} parts judged, {seen.rejected} rejected{few}"


def as_report(now: Look | None) -> dict[str, Any] | None:
    """For the status of a board: JSON values."""
    if now is None:
        return None
    share = now.rejected / now.judged if now.judged else None
    return {
        "uptime_s": round(now.uptime_s, 1),
        "is_turning": now.is_turning,
        "cameras_up": sorted(now.cameras_up),
        "thresholds": now.thresholds,
        "judged": now.judged,
        "rejected": now.rejected,
        "reject_share": share,
        "skipped": now.skipped,
    }
