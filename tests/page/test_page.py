"""The operator page in a real browser: what is shown is what was judged."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from page_shown import COLD, HOT, mean_rgb, set_slider, state, text, thumbs, wait_for_picture, wait_for_text

from chromium import Browser
from rdedge.inspector import Inspection
from rdedge.page import OperatorPage

MakePart = Callable[..., Inspection]
OpenPage = Callable[..., OperatorPage]


def test_a_good_part_then_a_reject(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    wait_for_text(browser, "detail", "no part yet")
    assert (text(browser, "word"), state(browser)) == ("WAITING", "none")
    sink.write(make_part(41, 0.25))
    wait_for_text(browser, "word", "GOOD")
    assert state(browser) == "good" and text(browser, "detail") == "part 41\nscore 0.25, threshold 0.5"
    good_colour = browser.run("getComputedStyle(document.getElementById('verdict')).backgroundColor")
    sink.write(make_part(42, 0.75))
    wait_for_text(browser, "word", "REJECT")
    assert state(browser) == "reject" and text(browser, "detail") == "part 42\nscore 0.75, threshold 0.5"
    assert browser.run("getComputedStyle(document.getElementById('verdict')).backgroundColor") != good_colour
    shapes = "[...document.querySelectorAll('#verdict g')].filter(g => getComputedStyle(g).display !== 'none')"
    assert browser.run(f"{shapes}.map(g => g.className.baseVal)") == ["reject"], "a shape of its own, not a colour only"
    assert browser.run("document.querySelector('#tabs button').innerText") == "✕\ntop"


def test_a_reject_is_shown_within_seconds_each_time(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    for number in range(1, 6):
        started_s = time.monotonic()
        sink.write(make_part(number, 0.75))
        wait_for_text(browser, "detail", f"part {number}\nscore 0.75, threshold 0.5")
        wait_for_picture(browser, number)
        browser.wait_for(f"document.querySelector('#rejects button').dataset.picture === '{number}'")
        assert time.monotonic() - started_s <= 3.0


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
    pixels = browser.run(
        "(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        "(document.querySelector('#rejects canvas'))"
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
    browser.tap("#copy")
    wait_for_text(browser, "difference", "Copied: threshold = 0.6000")
    assert browser.run("window.copied") == "threshold = 0.6000"
    sink.write(make_part(700, 0.55))
    wait_for_text(browser, "rejects-now", "200 · 29 %")
    wait_for_text(browser, "word", "REJECT")  # the line's own threshold holds
    assert text(browser, "difference") == "0 more rejected, 101 fewer, by score alone."
    browser.tap("#more")
    assert float(text(browser, "limit-then")) > 0.6
    browser.tap("#reset")
    wait_for_text(browser, "limit-then", "0.5")


def test_a_finger_moves_the_slider(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    sink = page.sink("top")
    for index in range(100):
        sink.write(make_part(index, index / 100))
    browser.open(page.url)
    wait_for_text(browser, "counted", "Last 100 parts")
    browser.tap("#threshold")
    browser.wait_for("document.getElementById('limit-then').textContent !== '0.5'")
    assert "by score alone" in text(browser, "difference")
