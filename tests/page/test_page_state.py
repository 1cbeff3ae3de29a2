"""The operator page in a real browser: nothing old passes for new, and everything can be reached and read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from page_shown import set_slider, shows, stands, text, wait_for_all, wait_for_picture, wait_for_text

from chromium import Browser
from rdedge.events import Event
from rdedge.inspector import Inspection
from rdedge.page import OperatorPage

MakePart = Callable[..., Inspection]
OpenPage = Callable[..., OperatorPage]
TOKEN = "a token of length"
SCORE = "score 0.25, threshold 0.5"
OVERFLOWS = """() => [...document.querySelectorAll("html, #numbers *, #word, #what-if *, #verdict")]
  .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1
    || ["HTML", "SECTION"].includes(e.tagName) && e.scrollHeight > e.clientHeight + 1)
  .map((e) => e.id || e.textContent)"""
SMALL = """() => [...document.querySelectorAll("button, input")].filter((e) => e.checkVisibility())
  .filter((e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 44).map((e) => e.id)"""
COVERED = """() => [...document.querySelectorAll("button:enabled, input:enabled")].filter((e) => e.checkVisibility())
  .filter((e) => {
    const box = e.getBoundingClientRect();
    return !e.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
  }).map((e) => e.id)"""


def test_an_old_verdict_is_grey_and_says_its_age(
    page: OperatorPage, browser: Browser, make_part: MakePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    for index in range(10):
        sink.write(make_part(index))
    look = "getComputedStyle(document.getElementById('picture')).filter"
    wait_for_text(browser, "word", "GOOD")
    monkeypatch.setattr("rdedge.page.board._STALE_S", (5.0, 300.0))
    says = "/^last part 9: good, ([5-9]\\.\\d|\\d\\d) s ago$/.test(document.getElementById('detail').textContent)"
    assert wait_for_all(browser, shows("word", "WAITING"), stands("old"), says, look).startswith("grayscale(1)")
    monkeypatch.setattr("rdedge.page.board._STALE_S", (120.0, 300.0))
    sink.write(make_part(10))
    assert wait_for_all(browser, shows("word", "GOOD"), shows("detail", f"part 10\n{SCORE}"), look) == "none"


def test_a_broken_connection_shows_at_once_and_heals(
    open_page: OpenPage, browser: Browser, make_part: MakePart
) -> None:
    page = open_page()
    page.sink("top").write(make_part(5, 0.75))
    browser.open(page.url)
    wait_for_text(browser, "word", "REJECT")
    browser.wait_for("document.querySelector('#rejects button').dataset.picture === '1'")
    port = int(page.url.rstrip("/").rpartition(":")[2])
    page.close()
    wait_for_text(browser, "word", "NO CONNECTION")
    browser.wait_for(stands("lost"))
    assert text(browser, "link").startswith("no connection since ")
    assert "the line does not answer\nlast part 5: reject, " in text(browser, "detail")
    again = open_page(port=port)
    sink = again.sink("top")
    sink.write(make_part(6, 0.8, size_hw=(240, 320)))
    wait_for_text(browser, "detail", "part 6\nscore 0.8, threshold 0.5")
    figures = (shows("counted", "Last 1 parts"), shows("parts", "1"), shows("rejected", "1"))
    wait_for_all(browser, shows("link", "connected"), *figures)
    wait_for_text(browser, "caption", "Part 6")
    pictures = "[...document.querySelectorAll('#rejects button')].map(b => b.dataset.picture).join()"
    browser.wait_for(f"{pictures} === '{','.join(['1', *['none'] * 11])}'")
    browser.tap("#rejects button")
    wait_for_text(browser, "enlarged-title", "Reject 6")
    assert browser.run("document.getElementById('large').width") == 320, "not the first reject of the line before"


def test_a_line_that_falls_silent_is_noticed(
    page: OperatorPage, browser: Browser, make_part: MakePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands and nothing comes: a cut cable, a hung machine."""
    monkeypatch.setattr("rdedge.page.server._HEARTBEAT_S", 3600.0)
    page.sink("top").write(make_part())
    browser.open(page.url)
    wait_for_text(browser, "word", "GOOD")
    wait_for_text(browser, "word", "NO CONNECTION")


def test_cameras_are_tabs_that_each_show_their_state(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    top, side = page.sink("top"), page.sink("side & <b>rear</b>")
    browser.open(page.url)
    browser.wait_for("document.querySelectorAll('#tabs button').length === 2")
    top.write(make_part(1, 0.25))
    side.write(make_part(2, 0.75))
    wait_for_text(browser, "word", "GOOD")
    browser.wait_for("document.querySelectorAll('#tabs button')[1].innerText === '✕\\nside & <b>rear</b>'")
    wait_for_text(browser, "limit-now", "0.5")
    set_slider(browser, "threshold", 0.3)
    browser.tap("#tabs button:last-child")
    wait_for_text(browser, "word", "REJECT")
    browser.wait_for("document.querySelector('#rejects button').dataset.picture === '1'")
    wait_for_text(browser, "limit-then", "0.5")  # each camera has its own try
    browser.tap("#tabs button:first-child")
    browser.wait_for("(b => b.disabled && b.dataset.picture === 'none')(document.querySelector('#rejects button'))")
    wait_for_text(browser, "limit-then", "0.3")
    assert browser.run("location.hash") == "#top", "a panel can be set to one camera"
    for address, word in {"#side%20%26%20%3Cb%3Erear%3C%2Fb%3E": "REJECT", "#%zz": "GOOD"}.items():
        browser.open("about:blank#")
        side.write(make_part(3, 0.75))
        top.write(make_part(4, 0.25))
        browser.open(page.url + address)
        wait_for_text(browser, "word", word)


def test_alarms_show_until_they_end_and_a_faulty_camera_has_no_verdict(
    page: OperatorPage, browser: Browser, make_part: MakePart
) -> None:
    sink = page.sink("top")
    browser.open(page.url)
    sink.write(make_part())
    wait_for_text(browser, "word", "GOOD")
    assert browser.run("document.getElementById('alarm').hidden")
    page.event(Event(kind="silent", severity="error", text="no frame for 2.0 s <i>", camera="top"))
    detail = "document.getElementById('detail').textContent"
    says = f"{detail}.startsWith('no frame for 2.0 s <i>\\nlast part 0: good, ')"
    wait_for_all(browser, shows("word", "NO VERDICT"), shows("alarm", "▲ top: no frame for 2.0 s <i>"), says)
    assert not browser.run("document.getElementById('alarm').hidden")
    page.event(Event(kind="recovered", severity="info", text="well again after 9.0 s", camera="top", ends=("silent",)))
    sink.write(make_part(1))
    wait_for_text(browser, "word", "GOOD")
    browser.wait_for("document.getElementById('alarm').hidden")
    browser.tap("#open-events")
    browser.wait_for("document.querySelectorAll('#event-list li').length === 2")
    first = browser.run("document.querySelector('#event-list li').textContent")
    assert first.endswith("  info  top: well again after 9.0 s")


def test_hostile_names_are_text(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    sink = page.sink(hostile)
    browser.open(page.url)
    sink.write(make_part(0, 0.75, source=hostile, part_id=hostile))
    browser.wait_for("document.querySelector('#rejects button').dataset.picture === '1'")
    browser.tap("#rejects button")
    wait_for_text(browser, "enlarged-title", f"Reject {hostile}")
    assert browser.run("document.images.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1024, 600), (1280, 800), (1920, 1080)])
def test_it_fits_the_screen_and_the_finger(
    page: OperatorPage, browser: Browser, make_part: MakePart, size: tuple[int, int], scheme: str
) -> None:
    browser.set_screen(*size, scheme=scheme)
    sink = page.sink("top")
    for index in range(1200):
        sink.write(make_part(index, 0.75 if index % 100 == 0 else index / 4000))
    page.event(Event(kind="sink-away", severity="warning", text="mqtt://10.0.0.7:1883: is away " * 5, camera="top"))
    browser.open(page.url)
    wait_for_text(browser, "parts", "1,200")
    assert browser.run(f"({OVERFLOWS})()") == [], "no scrolling, nothing cut off"
    assert browser.run(f"({SMALL})()") == [], "every target is a finger's size"
    assert browser.run(f"({COVERED})()") == [], "and can be reached"
    dark = browser.run("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")
    assert (int(dark[0]) < 50) is (scheme == "dark")


def test_nothing_is_fetched_from_elsewhere(page: OperatorPage, browser: Browser, make_part: MakePart) -> None:
    page.sink("top").write(make_part(0, 0.75))
    browser.open(page.url)
    wait_for_picture(browser, 1)
    fetched = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(fetched) > 5 and all(name.startswith(page.url) for name in fetched)


def test_the_login_asks_for_the_token_and_remembers_it(
    open_page: OpenPage, browser: Browser, make_part: MakePart
) -> None:
    page = open_page(token=TOKEN)
    page.sink("top").write(make_part(0, 0.75))
    browser.open(page.url)
    enter = "document.getElementById('token').value = '{}'; document.querySelector('form').requestSubmit()"
    browser.run(enter.format("wrong, wrong, wrong"))
    wait_for_text(browser, "answer", "That is not the token.")
    browser.run(enter.format(TOKEN))
    browser.wait_for("document.getElementById('word')?.textContent === 'REJECT'")
    assert browser.run("document.cookie") == "", "no script can read it"
    browser.open(page.url)
    browser.wait_for("document.getElementById('word')?.textContent === 'REJECT'")
    history = browser.call("Page.getNavigationHistory")["entries"]
    assert not any("token" in entry["url"] for entry in history)


def test_a_token_in_the_address_is_gone_from_it_at_once(
    open_page: OpenPage, browser: Browser, make_part: MakePart
) -> None:
    page = open_page(token=TOKEN)
    page.sink("top").write(make_part(0, 0.75))
    browser.open(f"{page.url}?token={TOKEN.replace(' ', '%20')}")
    browser.wait_for("document.getElementById('word')?.textContent === 'REJECT'")
    assert browser.run("location.href") == page.url
    history = browser.call("Page.getNavigationHistory")["entries"]
    assert not any("token" in entry["url"] for entry in history)
    browser.call("Network.clearBrowserCookies")
    page.close()
    port = int(page.url.rstrip("/").rpartition(":")[2])
    open_page(port=port, token=TOKEN.upper())
    browser.wait_for("document.getElementById('token') !== null")
