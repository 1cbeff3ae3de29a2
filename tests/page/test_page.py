"""The operator page in a real browser: what is shown is what was judged."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from page_shown import (
    COLD,
    HOT,
    mean_rgb,
    set_slider,
    shows,
    stands,
    text,
    thumbs,
    wait_for_all,
    wait_for_picture,
    wait_for_text,
)

from chromium import Browser
from rdedge.inspector import Inspection
from rdedge.page import OperatorPage

MakePart = Callable[..., Inspection]
OpenPage = Callable[..., OperatorPage]
STOP_CLOCK = "window.now_ms = 0, performance.now = () => window.now_ms, null"


def test_a_good_part_then_a_reject(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    wait_for_all(browser, shows("word", "WAITING"), stands("none"), shows("detail", "no part yet"))
    looks = """(g => [getComputedStyle(document.getElementById("verdict")).backgroundColor,
      [...g].filter((one) => getComputedStyle(one).display !== "none").map((one) => one.className.baseVal).join(),
      document.querySelector("#tabs button").innerText])(document.querySelectorAll("#verdict g"))"""
    sink.write(make_part(41, 0.25))
    detail = shows("detail", "part 41\nscore 0.25, threshold 0.5")
    good_colour, *_ = wait_for_all(browser, shows("word", "GOOD"), stands("good"), detail, looks)
    sink.write(make_part(42, 0.75))
    detail = shows("detail", "part 42\nscore 0.75, threshold 0.5")
    colour, shapes, tab = wait_for_all(browser, shows("word", "REJECT"), stands("reject"), detail, looks)
    assert colour != good_colour and tab == "✕\ntop"
    assert shapes == "reject", "a shape of its own, not a colour only"


def test_a_reject_is_shown_within_seconds(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    times_s = []
    for number in range(1, 6):
        started_s = time.monotonic()
        sink.write(make_part(number, 0.75))
        wait_for_text(browser, "detail", f"part {number}\nscore 0.75, threshold 0.5")
        wait_for_picture(browser, number)
        browser.wait_for(f"document.querySelector('#rejects button').dataset.picture === '{number}'")
        times_s.append(time.monotonic() - started_s)
    assert sorted(times_s)[2] <= 3.0, times_s


def test_counts_rates_and_latency(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    for index in range(1600):
        sink.write(make_part(index, 0.75 if index % 400 == 0 else 0.25, ms=20.0 if index % 10 == 0 else 5.0))
    browser.open(page.url)
    wait_for_text(browser, "parts", "1,600")
    assert (text(browser, "rejected"), text(browser, "rate")) == ("4", "0.25 %")
    assert (text(browser, "recent-title"), text(browser, "recent")) == ("Last 1,000", "0.20 %")
    assert text(browser, "latency") == "5.0 / 20.0"
    sink.write(make_part(1600, 0.75))
    wait_for_text(browser, "parts", "1,601")
    assert (text(browser, "rejected"), text(browser, "recent")) == ("5", "0.30 %")


def test_the_heat_map_lies_over_the_defect(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    sink.write(make_part(0, 0.2))
    wait_for_picture(browser, 1)
    assert mean_rgb(browser, "picture", HOT) == pytest.approx([128] * 3, abs=3), "a good part is left as it is"
    sink.write(make_part(1, 0.75))
    wait_for_picture(browser, 2)
    red, _, blue = mean_rgb(browser, "picture", HOT)
    assert red > 110 and blue < 90 and mean_rgb(browser, "picture", COLD) == pytest.approx([128] * 3, abs=3)
    set_slider(browser, "heat", 0)
    assert mean_rgb(browser, "picture", HOT) == pytest.approx([128] * 3, abs=3)
    set_slider(browser, "heat", 100)
    assert mean_rgb(browser, "picture", HOT)[2] < 30, "opaque"
    box = mean_rgb(browser, "picture", "[150, 230, 100, 6]")
    assert abs(box[0] - 128) > 20, "the region's box"
    assert text(browser, "caption") == "Part 1"


def test_a_large_picture_and_a_region_of_interest_keep_their_places(
    page: OperatorPage, browser: Browser, make_part: MakePart
) -> None:
    sink = page.sink("top", roi_xywh=(960, 0, 960, 1440))
    browser.open(page.url)
    sink.write(make_part(0, 0.75, size_hw=(1440, 1920)))
    wait_for_picture(browser, 1)
    set_slider(browser, "heat", 100)
    assert browser.run("[document.getElementById('picture').width, document.getElementById('picture').height]") == [
        960,
        720,
    ]
    # map pixels 16..24 of 64 across the right half, 24..32 of 48 down, at half the size
    assert mean_rgb(browser, "picture", "[610, 370, 40, 90]")[2] < 30
    assert mean_rgb(browser, "picture", "[700, 370, 40, 90]") == pytest.approx([128] * 3, abs=3)


def test_the_last_rejects_are_thumbnails_to_enlarge(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    for index in range(15):
        sink.write(make_part(index, 0.6 + index / 100, source=f"parts/{index}.png"))
        if index in (0, 14):
            browser.wait_for(f"document.querySelector('#rejects button').dataset.picture === '{index + 1}'")
    browser.wait_for("[...document.querySelectorAll('#rejects button')].every(b => !b.disabled)")
    assert [label for _, _, label in thumbs(browser)] == [f"Reject {index}" for index in range(14, 2, -1)]
    pixels = wait_for_all(
        browser,
        "document.querySelector('#rejects button').dataset.picture === '15'",
        "(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        "(document.querySelector('#rejects canvas'))",
    )
    assert pixels > 10, "a picture, not an empty square"
    browser.tap("#rejects button")
    browser.wait_for("document.getElementById('enlarged').open")
    assert text(browser, "enlarged-title") == "Reject 14"
    facts = text(browser, "enlarged-facts")
    assert "score 0.74\nthreshold 0.5\nparts/14.png" in facts
    row = browser.run("[...document.querySelectorAll('#regions td')].map(cell => cell.textContent)")
    assert row == ["0.74", "6,400", "160, 240", "80\u00d780"]
    assert mean_rgb(browser, "large", HOT)[2] < 110
    browser.tap("#older")
    wait_for_text(browser, "enlarged-title", "Reject 13")
    browser.tap("#newer")
    wait_for_text(browser, "enlarged-title", "Reject 14")
    browser.tap("#enlarged .close")
    browser.wait_for("!document.getElementById('enlarged').open")


def test_what_another_threshold_would_have_done(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    scores = [index / 1000 for index in range(700)]  # the line's limit is 0.5: 199 rejects
    for score in scores:
        sink.write(make_part(0, score))
    browser.open(page.url)
    wait_for_text(browser, "counted", "Last 700 parts")
    assert (text(browser, "limit-now"), text(browser, "rejects-now")) == ("0.5", "199 · 28 %")
    assert (text(browser, "limit-then"), text(browser, "rejects-then")) == ("0.5", "199 · 28 %")
    set_slider(browser, "threshold", 0.3)
    assert (text(browser, "limit-then"), text(browser, "rejects-then")) == ("0.3", "399 · 57 %")
    assert text(browser, "difference") == "200 more rejected, 0 fewer, by score alone."
    set_slider(browser, "threshold", 0.6)
    assert (text(browser, "rejects-then"), text(browser, "difference")) == (
        "99 · 14 %",
        "0 more rejected, 100 fewer, by score alone.",
    )
    browser.run("navigator.clipboard.writeText = async (line) => { window.copied = line }")
    browser.run(STOP_CLOCK)
    browser.tap("#copy")
    wait_for_text(browser, "difference", "Copied: threshold = 0.6000")
    assert browser.run("window.copied") == "threshold = 0.6000"
    sink.write(make_part(700, 0.55))
    wait_for_text(browser, "rejects-now", "200 · 29 %")
    wait_for_text(browser, "word", "REJECT")  # the line's own threshold holds
    assert text(browser, "difference") == "Copied: threshold = 0.6000", "it can be read, however fast parts come"
    browser.run("window.now_ms += 3000")
    wait_for_text(browser, "difference", "0 more rejected, 101 fewer, by score alone.")
    browser.run("navigator.clipboard.writeText = () => Promise.reject()")
    browser.tap("#copy")
    wait_for_text(browser, "difference", "threshold = 0.6000")
    sink.write(make_part(701, 0.55))
    wait_for_text(browser, "rejects-now", "201 · 29 %")
    assert browser.run("getSelection().toString()") == "threshold = 0.6000", "to be copied by hand"
    browser.tap("#more")
    assert float(text(browser, "limit-then")) > 0.6 and "by score alone" in text(browser, "difference")
    browser.tap("#reset")
    wait_for_text(browser, "limit-then", "0.5")


def test_a_try_between_a_part_and_its_drawing_stands(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    """While the chart waits for its next tick, a finger may already have moved the slider."""
    sink = page.sink("top")
    sink.write(make_part(1))
    browser.open(page.url)
    wait_for_text(browser, "parts", "1")
    browser.run(STOP_CLOCK)  # so that only ticks draw
    browser.run(
        """new MutationObserver((_, observer) => {
          if (!document.getElementById("detail").textContent.startsWith("part 2")) return;
          observer.disconnect();
          window.drawn = document.getElementById("parts").textContent;
          const slider = document.getElementById("threshold");
          slider.value = 0.4;
          slider.dispatchEvent(new Event("input"));
        }).observe(document.getElementById("detail"), { childList: true })"""
    )
    sink.write(make_part(2, 0.75))
    wait_for_text(browser, "parts", "2")
    assert browser.run("window.drawn") == "1"
    assert text(browser, "limit-then") == "0.4"


def test_a_finger_moves_the_slider(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    for index in range(100):
        sink.write(make_part(index, index / 100))
    browser.open(page.url)
    wait_for_text(browser, "counted", "Last 100 parts")
    browser.tap("#threshold")
    browser.wait_for("document.getElementById('limit-then').textContent !== '0.5'")
    assert "by score alone" in text(browser, "difference")
