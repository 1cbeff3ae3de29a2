"""Cameras that are killed and come back, again and again: one source goes on, every outage is told once, nothing leaks.

The full counts (RTSP 50 times, GigE 20 times) are marked slow and print what they saw.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from camera_servers import Server, needs, wait_until
from free_port import free_port

from rdedge.events import Event
from rdedge.images import silence_opencv
from rdedge.sources import WatchLimits, open_source
from rdedge.stream import Stream

LIMITS = WatchLimits(
    retry_s=0.1,
    retry_cap_s=0.5,
    silent_s=8.0,
    settle_frames=3,
    first_frame_s=20.0,
    refused_retry_s=0.5,
    slow_factor=1e9,
)


def killed_and_restarted(uri: str, server: Server, times: int, limits: WatchLimits) -> str:
    """Frames from one source through so many kills; returns a line of what was seen."""
    events: list[Event] = []
    stream = Stream(open_source(uri, camera="line", on_event=events.append, limits=limits), policy="latest")
    latest = {"index": -1, "at_s": 0.0}
    order: list[int] = []

    def judge() -> None:
        for frame in stream:
            order.append(frame.index)
            latest.update(index=frame.index, at_s=frame.captured_at_s)

    judging = threading.Thread(target=judge)
    server.start()
    judging.start()
    outages_s: list[float] = []
    try:
        wait_until(lambda: latest["index"] >= 5, "the first frames")
        for round_index in range(times):
            told = len(events)
            server.kill()
            killed_s = time.monotonic()
            wait_until(lambda told=told: len(events) > told, f"kill {round_index} is told")
            server.start()
            started_s = time.monotonic()
            wait_until(lambda since=started_s: latest["at_s"] > since, f"frames after kill {round_index}")
            outages_s.append(latest["at_s"] - started_s)
            wait_until(
                lambda: events[-1].kind == "recovered" and not stream._source.info.faults, f"kill {round_index} is over"
            )
            assert latest["at_s"] > killed_s
        open_files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    finally:
        stream.close()
        judging.join(60)
        server.kill()
    kinds = Counter(event.kind for event in events)
    assert Counter(kind for event in events for kind in event.ends) == kinds - Counter(recovered=kinds["recovered"])
    assert [kind for kind, _ in itertools.groupby(event.kind == "recovered" for event in events)] == [
        False,
        True,
    ] * times
    for is_over, outage in itertools.groupby(events, key=lambda event: event.kind == "recovered"):
        told_kinds = [event.kind for event in outage]
        assert is_over or len(told_kinds) == len(set(told_kinds)), "a kind once in an outage"
    assert order == sorted(set(order)), "numbers go up over all connections"
    counts = stream.counts
    assert counts.offered == counts.delivered + counts.dropped + counts.queued and counts.delivered == len(order)
    worst_s = max(outages_s)
    return (
        f"{times} kills, {counts.offered} frames, {dict(kinds)}; frames again after a restart within "
        f"{worst_s:.1f} s at worst; {open_files} open files, {threads} threads at the end"
    )


def _leaves_nothing(
    uri: str, server: Server, times: int, capsys: pytest.CaptureFixture[str], limits: WatchLimits = LIMITS
) -> None:
    silence_opencv()
    threads_before = {thread.name for thread in threading.enumerate()}
    files_before = len(os.listdir("/proc/self/fd"))
    seen = killed_and_restarted(uri, server, times, limits)
    with capsys.disabled():
        print(f"\n{uri}: {seen}")
    wait_until(lambda: {thread.name for thread in threading.enumerate()} <= threads_before, "threads are left")
    most = files_before + 8  # of libraries, once; not some a kill
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= most, "files are left open")


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_an_rtsp_camera_is_killed_and_comes_back(times: int, capsys: pytest.CaptureFixture[str]) -> None:
    if why := needs("GstRtspServer", "1.0", "gir1.2-gst-rtsp-server-1.0"):
        pytest.skip(why)
    port = str(free_port())
    _leaves_nothing(f"rtsp://127.0.0.1:{port}/line", Server("rtsp_server.py", port), times, capsys)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_gige_camera_is_killed_mid_stream_and_comes_back(
    times: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := needs("Aravis", "0.8", "gir1.2-aravis-0.8"):
        pytest.skip(why)
    limits = replace(LIMITS, silent_s=4.0)  # by its silence alone a kill shows here
    monkeypatch.setattr("rdedge.sources.aravis._FREE_RUNNING_TIMEOUT_S", limits.silent_s)
    _leaves_nothing("gige://127.0.0.1?fps=50", Server("gige_server.py", "127.0.0.1"), times, capsys, limits)
