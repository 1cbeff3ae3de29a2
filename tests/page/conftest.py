"""Parts with known verdicts, an operator page that must leave nothing behind, and a real browser to look at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from chromium import Browser, find_chromium
from rdedge.frames import Frame
from rdedge.inspector import Inspection, StageTimes
from rdedge.judge import judge
from rdedge.line.debounce import PartVerdict
from rdedge.page import OperatorPage

LIMIT = 0.5
WAIT_S = 30.0
FRAME_HW, MAP_HW = (480, 640), (48, 64)
GREY = 128

MakePart = Callable[..., Inspection]


@pytest.fixture(scope="session")
def make_part() -> MakePart:
    """A grey part; a score above 0.5 is a hot square of 8 x 8 at (16, 24) of the map: x 160, y 240, 80 x 80 pixels."""

    def make(
        index: int = 0,
        score: float = 0.25,
        *,
        ms: float = 10.0,
        source: str = "parts/a.png",
        size_hw: tuple[int, int] = FRAME_HW,
        part_id: str | None = None,
        part: PartVerdict | None = None,
    ) -> Inspection:
        anomaly_map = np.zeros(MAP_HW, np.float32)
        anomaly_map[24:32, 16:24] = score
        height, width = size_hw
        return Inspection(
            frame=Frame(
                image_bgr_u8=np.full((*size_hw, 3), GREY, np.uint8),
                index=index,
                captured_at_s=time.monotonic(),
                source=source,
                part_id=part_id,
            ),
            verdict=judge(
                anomaly_map, score, image_threshold=LIMIT, pixel_threshold=0.4, roi_xywh=(0, 0, width, height)
            ),
            times=StageTimes(preprocess_ms=0.0, infer_ms=ms, judge_ms=0.0),
            part=part,
        )

    return make


WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Waits for something that happens in another thread; fails after half a minute."""

    def wait(is_true: Callable[[], bool]) -> None:
        until_s = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < until_s, "it never happened"
            time.sleep(0.005)

    return wait


def page_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rdedge-page")]


OpenPage = Callable[..., OperatorPage]


@pytest.fixture
def open_page(wait_until: WaitUntil) -> Iterator[OpenPage]:
    """``open_page(**arguments)``: a page on a free port; all of them are closed and must leave no thread."""
    pages: list[OperatorPage] = []

    def make(**arguments: object) -> OperatorPage:
        page = OperatorPage(**({"port": 0, "session": "s"} | arguments))  # type: ignore[arg-type]
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.close()
    wait_until(lambda: page_threads() == [])


@pytest.fixture
def page(open_page: OpenPage) -> OperatorPage:
    return open_page()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each uses a page of its own."""
    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """At a 7-inch screen's size, with an empty memory; verdicts last longer than any test takes to look at them.

    There may be no error and no breach of the Content-Security-Policy; a broken connection may be told.
    """
    monkeypatch.setattr("rdedge.page.board._STALE_S", (120.0, 300.0))
    monkeypatch.setattr("rdedge.page.board._STALE_FIRST_S", 120.0)
    chromium.open("about:blank#")
    chromium.call("Network.clearBrowserCookies")
    chromium.set_screen(1024, 600)
    chromium.messages.clear()
    yield chromium
    assert [message for message in chromium.messages if "Failed to load resource" not in message] == []
