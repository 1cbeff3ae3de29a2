"""Every fault of a camera is told once, withheld from the judge, retried with back-off, and got over without a restart.

The cameras here are scripted, to the millisecond; real ones are in tests/cameras and tests/faults.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sink_parts import wait_until

from rdedge.errors import CameraFault, ImageError, MissingExtraError, RdedgeError, UsageError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.sources import SourceInfo, WatchLimits
from rdedge.sources.watched import WatchedSource
from rdedge.stream import Stream

FAST = WatchLimits(
    first_frame_s=20.0, silent_s=10.0, frozen_s=0.0, reopen_s=20.0, settle_frames=3, slow_factor=100.0,
    retry_s=0.01, retry_cap_s=0.04, refused_retry_s=0.02,
)  # fmt: skip
REOPENED = replace(FAST, reopen_s=0.2)
IMPATIENT = replace(FAST, first_frame_s=1.0, silent_s=1.0, silent_intervals=3.0)
WAIT_S = 30.0
FOR_EVER_S = 1000.0


def picture(seed: int, level: int = 100, size_hw: tuple[int, int] = (24, 32)) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-9, 10, (*size_hw, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


BLACK, WHITE, SMALL = np.zeros((24, 32, 3), np.uint8), np.full((24, 32, 3), 255, np.uint8), picture(9, 100, (12, 16))
Step = np.ndarray | BaseException | float | None  # a picture, a fault, a pause in seconds, the end


class Scripted:
    """A camera that follows a script; at its end, it gives no more."""

    name = "scripted"

    def __init__(self, steps: Iterator[Step], info: SourceInfo):
        self._steps, self.info = steps, info
        self.closed = threading.Event()

    def read(self) -> Frame | None:
        for step in self._steps:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, float):
                self.closed.wait(step)
                continue
            if step is None:
                return None
            part_id = "P" if self.info.is_triggered else None
            return Frame(image_bgr_u8=step, index=7, captured_at_s=time.monotonic(), source=self.name, part_id=part_id)
        return None

    def close(self) -> None:
        self.closed.set()


class Cameras:
    """Each opening follows the next script; an exception in place of a script is raised by the opening."""

    def __init__(self, *scripts: list[Step] | Exception, info: SourceInfo | None = None):
        self._scripts = list(scripts)
        self._info = info or SourceInfo(size_hw=(24, 32), fps=50.0)
        self.opened_at_s: list[float] = []
        self.opened: list[Scripted] = []

    def __call__(self) -> Scripted:
        self.opened_at_s.append(time.monotonic())
        script = self._scripts.pop(0) if self._scripts else [None]
        if isinstance(script, Exception):
            raise script
        self.opened.append(Scripted(iter(script), self._info))
        return self.opened[-1]


def run(cameras: Callable[[], Scripted], limits: WatchLimits = FAST) -> tuple[list[Frame], list[Event], WatchedSource]:
    """Everything a source gives and tells until its camera is done."""
    events: list[Event] = []
    source = WatchedSource("cam://x", cameras, camera="left", on_event=events.append, limits=limits)
    frames = list(source)
    return frames, events, source


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def good(count: int, start: int = 0) -> list[Step]:
    return [picture(start + i) for i in range(count)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not any(thread.name.startswith("rdedge") for thread in threading.enumerate()))


def fault(kind: str) -> CameraFault:
    return CameraFault(kind, f"it is {kind}", remedy="mend it")


def test_a_healthy_camera_says_nothing() -> None:
    frames, events, source = run(Cameras([*good(50), None]))
    assert [frame.index for frame in frames] == list(range(50)) and events == []
    assert source.info == SourceInfo(size_hw=(24, 32), fps=50.0)


@pytest.mark.parametrize("kind", ["unplugged", "silent", "credentials", "misconfigured"])
def test_a_connection_that_breaks_is_told_once_and_made_again(kind: str) -> None:
    cameras = Cameras([*good(4), fault(kind)], fault(kind), fault(kind), [*good(4, 10), None])
    frames, events, source = run(cameras)
    assert kinds(events) == [kind, "recovered"]
    assert (events[0].severity, events[0].text, events[0].camera) == ("error", f"it is {kind}; mend it", "left")
    assert events[1].severity == "info" and f"({kind})" in events[1].text
    assert [frame.index for frame in frames] == list(range(8)), "numbered over both connections"
    assert source.info.restarts == 3 and source.info.faults == ()
    assert all(camera.closed.is_set() for camera in cameras.opened)


def test_a_camera_that_is_off_at_the_start_is_waited_for() -> None:
    frames, events, _ = run(Cameras(*[fault("unplugged")] * 3, [*good(3), None]))
    assert len(frames) == 3 and kinds(events) == ["unplugged", "recovered"]


@pytest.mark.parametrize("error", [UsageError("no option x", remedy="y"), MissingExtraError("no gi", remedy="apt")])
def test_what_waiting_cannot_mend_ends_the_source(error: RdedgeError) -> None:
    with pytest.raises(type(error)):
        run(Cameras(error))


def test_a_camera_exchanged_for_a_wrong_one_is_waited_out() -> None:
    frames, events, _ = run(Cameras([*good(3), fault("unplugged")], UsageError("no 4K", remedy="x"), [*good(3), None]))
    assert len(frames) == 6 and kinds(events) == ["unplugged", "misconfigured", "recovered"]


def test_a_bug_is_not_taken_for_a_fault() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Cameras([*good(1), ZeroDivisionError()]))


def test_a_silent_camera_is_not_waited_for() -> None:
    frames, events, _ = run(Cameras([*good(3), FOR_EVER_S, *good(1)], [*good(3, 10), None]), IMPATIENT)
    assert len(frames) == 6 and kinds(events) == ["silent", "recovered"]
    waited = re.search(r"no frame for (\d+\.\d) s", events[0].text)
    assert waited is not None and float(waited[1]) >= 1.0


def test_a_camera_that_opens_and_gives_nothing_is_silent() -> None:
    _, events, _ = run(Cameras([FOR_EVER_S], [*good(3), None]), IMPATIENT)
    assert kinds(events) == ["silent", "recovered"]


def test_a_triggered_camera_may_wait_for_its_part() -> None:
    info = SourceInfo(fps=50.0, is_triggered=True)
    frames, events, _ = run(Cameras([1.5, *good(2), 1.5, *good(1, 5), None], info=info), IMPATIENT)
    assert len(frames) == 3 and events == []


@pytest.mark.parametrize(("bad", "kind"), [(BLACK, "black"), (WHITE, "saturated"), (SMALL, "resized")])
def test_what_is_no_picture_is_withheld(bad: np.ndarray, kind: str) -> None:
    frames, events, source = run(Cameras([*good(2), bad, bad, *good(2, 10), bad, *good(3, 20), None]))
    assert [frame.index for frame in frames] == list(range(7))
    assert all(frame.image_bgr_u8.shape == (24, 32, 3) and 50 < frame.image_bgr_u8.mean() < 150 for frame in frames)
    assert kinds(events) == [kind, "recovered"], "told once although two good frames came in between"
    assert source.info.withheld == 3


def test_a_frozen_camera_gives_nothing_and_is_opened_again() -> None:
    stuck = picture(1)
    cameras = Cameras([picture(0), *[step for _ in range(100) for step in (stuck, 0.01)]], [*good(3, 10), None])
    frames, events, source = run(cameras, REOPENED)
    assert len(frames) == 5, "the frozen picture went through once, when it was new"
    assert kinds(events) == ["frozen", "recovered"]
    assert source.info.restarts == 1 and source.info.withheld >= 2


STUCK = picture(1)
DAMAGED = ImageError("torn", remedy="x")


@pytest.mark.parametrize(
    ("scripts", "told"),
    [
        (
            ([*good(2), *[STUCK] * 9, fault("unplugged")], [*[STUCK] * 9, *good(3, 10), None]),
            [("frozen", ()), ("unplugged", ()), ("recovered", ("unplugged",)), ("recovered", ("frozen",))],
        ),
        (
            ([*good(2), BLACK, BLACK, fault("silent")], fault("unplugged"), [BLACK] * 3 + [*good(3, 10), None]),
            [("black", ()), ("silent", ()), ("unplugged", ()), ("recovered", ("silent", "unplugged")),
             ("recovered", ("black",))],
        ),
        (
            ([*good(2), BLACK, *[WHITE] * 4, *good(3, 10), None],),
            [("black", ()), ("saturated", ()), ("recovered", ("black",)), ("recovered", ("saturated",))],
        ),
        (
            ([*good(2), BLACK, *[DAMAGED] * 9, *good(3, 10), None],),
            [("black", ()), ("bad-frame", ()), ("recovered", ("black", "bad-frame"))],
        ),
        (
            ([*good(2), *[STUCK] * 9, SMALL, BLACK, *[STUCK] * 9, *good(3, 10), None],),
            [("frozen", ()), ("resized", ()), ("black", ()), ("recovered", ("black",)), ("recovered", ("resized",)),
             ("recovered", ("frozen",))],
        ),
    ],
    ids=["frozen and unplugged", "black, then gone", "too dark, then too bright", "damage shows nothing", "three"],
)  # fmt: skip
def test_each_of_several_faults_ends_by_itself(
    scripts: tuple[list[Step] | Exception, ...], told: list[tuple[str, tuple[str, ...]]]
) -> None:
    """A frame that shows one fault says that another is over only where it could have shown it."""
    _, events, source = run(Cameras(*scripts))
    assert [(event.kind, event.ends) for event in events] == told
    assert source.info.faults == ()
    for number, event in enumerate(events):
        standing = [e.kind for e in events[:number] if e.kind not in {k for x in events[: number + 1] for k in x.ends}]
        still = f"; still {', '.join(k for k in standing if k != 'recovered')}"
        assert event.kind != "recovered" or event.text.endswith(still) == (still != "; still ")


def test_no_light_does_not_open_the_camera_again() -> None:
    dark = [step for i in range(60) for step in (picture(i, 0) // 4, 0.01)]
    _, events, source = run(Cameras([*good(1), *dark, *good(3, 10), None]), REOPENED)
    assert kinds(events) == ["black", "recovered"] and source.info.restarts == 0


def test_a_damaged_frame_is_withheld_and_the_next_one_taken() -> None:
    damaged = ImageError("truncated JPEG", remedy="check")
    frames, events, source = run(Cameras([*good(1), damaged, damaged, *good(3, 10), None]))
    assert len(frames) == 4 and kinds(events) == ["bad-frame", "recovered"]
    assert (events[0].severity, source.info.withheld) == ("warning", 2)


def test_damage_that_stays_opens_the_camera_again() -> None:
    damaged: list[Step] = [step for _ in range(60) for step in (ImageError("torn", remedy="x"), 0.01)]
    _, events, source = run(Cameras([*good(1), *damaged], [*good(3, 10), None]), REOPENED)
    assert kinds(events) == ["bad-frame", "recovered"] and source.info.restarts == 1


def test_each_part_without_a_verdict_is_told() -> None:
    info = SourceInfo(is_triggered=True)
    missed = ImageError("part 17 was not caught", remedy="x")
    _, events, _ = run(Cameras([*good(1), BLACK, BLACK, missed, *good(3, 10), None], info=info))
    assert kinds(events) == ["black", "part-lost", "part-lost", "bad-frame", "part-lost", "recovered"]
    assert events[1].text.startswith("part P gets no verdict: the picture is black")
    assert "part 17 was not caught" in events[4].text


def readings_s(*waits_s: float) -> Iterator[float]:
    """What a clock says before and after each of these waits."""
    for end_s, wait_s in zip(itertools.accumulate(waits_s), waits_s, strict=True):
        yield from (end_s - wait_s, end_s)


def test_a_slow_camera_is_told_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = readings_s(*[0.01] * 5, *[0.25] * 10, *[0.002] * 80, 0.0)
    monkeypatch.setattr("rdedge.sources.reader.time", SimpleNamespace(monotonic=clock.__next__))
    cameras = Cameras([*good(95), None], info=SourceInfo(fps=20.0))
    frames, events, _ = run(cameras, replace(FAST, slow_factor=2.0))
    assert len(frames) == 95
    assert kinds(events) == ["slow", "recovered"] and "instead of 20.0" in events[0].text
    assert events[1].ends == ("slow",)
    assert events[0].severity == "warning"


def test_a_slow_judge_is_no_slow_camera() -> None:
    """With back-pressure the camera waits for the judge, which is not its fault."""
    events: list[Event] = []
    limits = replace(FAST, slow_factor=2.0)
    source = WatchedSource("cam://x", Cameras([*good(60), None]), on_event=events.append, limits=limits)
    for _ in source:
        time.sleep(0.05)
    assert events == []


def test_waits_between_attempts_double_up_to_a_cap_and_differ() -> None:
    waits_s: list[float] = []

    class Noted(threading.Event):
        """Notes for how long it is waited for, and does not wait."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits_s.append(timeout)
            return self.is_set()

    limits = replace(FAST, retry_s=40.0, retry_cap_s=160.0)
    cameras = Cameras(*[fault("unplugged")] * 6, [None])
    source = WatchedSource("cam://x", cameras, on_event=lambda _: None, limits=limits)
    source._closed = Noted()
    assert list(source) == [] and len(cameras.opened_at_s) == 7
    waits_s = [wait_s for wait_s in waits_s if wait_s > 1.0]  # the others are for the last connection to end
    for wait_s, expected_s in zip(waits_s, [40.0, 80.0, 160.0, 160.0, 160.0, 160.0], strict=True):
        assert 0.8 * expected_s <= wait_s <= 1.2 * expected_s
    assert len({round(wait_s / 160.0, 3) for wait_s in waits_s[2:]}) > 1, "jitter"


def test_a_refused_password_is_not_hammered() -> None:
    limits = replace(FAST, retry_s=0.001, refused_retry_s=0.3)
    cameras = Cameras(fault("credentials"), [None])
    run(cameras, limits)
    assert cameras.opened_at_s[1] - cameras.opened_at_s[0] >= 0.24


def test_a_driver_that_hangs_is_left_alone_until_it_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never two connections at a time, and the line is not held: it ends when it is told to."""
    monkeypatch.setattr("rdedge.sources.reader._JOIN_S", 0.05)
    monkeypatch.setattr("rdedge.sources.watched._STUCK_S", 0.1)
    release = threading.Event()

    class Hanging(Scripted):
        def read(self) -> Frame | None:
            release.wait(WAIT_S)
            return None

    healthy = Cameras([*good(3), None])
    opened: list[Scripted] = []

    def open_camera() -> Scripted:
        opened.append(Hanging(iter(()), SourceInfo()) if not opened else healthy())
        return opened[-1]

    events: list[Event] = []

    def let_go(event: Event) -> None:
        events.append(event)
        if event.kind == "stuck":
            assert len(opened) == 1
            release.set()

    source = WatchedSource("cam://x", open_camera, on_event=let_go, limits=replace(FAST, first_frame_s=1.0))
    assert len(list(source)) == 3 and kinds(events) == ["silent", "stuck", "recovered"]
    assert len(opened) == 2


def test_closing_ends_a_wait_for_a_frame_and_one_between_attempts() -> None:
    for script in ([FOR_EVER_S], fault("unplugged")):
        limits = replace(FAST, first_frame_s=60.0, retry_s=60.0, retry_cap_s=60.0)
        source = WatchedSource("cam://x", Cameras(script), on_event=lambda _: None, limits=limits)
        stream = Stream(source)
        timer = threading.Timer(0.2, stream.close)
        started_s = time.monotonic()
        timer.start()
        assert list(stream) == []
        timer.join(WAIT_S)
        assert time.monotonic() - started_s < 30.0


def test_lost_frames_add_up_over_connections() -> None:
    _, _, source = run(Cameras([*good(1), fault("unplugged")], [*good(1), None], info=SourceInfo(lost=5)))
    assert source.info.lost == 10


def test_even_a_reader_that_exits_is_no_silence() -> None:
    with pytest.raises(SystemExit):
        run(Cameras([*good(1), SystemExit(3)]))
