"""What the operator page shows, read from a real browser."""

from __future__ import annotations

from typing import Any

from chromium import Browser

MEAN = """(([x, y, w, h]) => {
  const pixels = document.getElementById("%s").getContext("2d").getImageData(x, y, w, h).data;
  return [0, 1, 2].map((c) => pixels.filter((_, i) => i %% 4 === c).reduce((a, b) => a + b) / (pixels.length / 4));
})(%s)"""
HOT, COLD = "[180, 260, 40, 40]", "[400, 40, 100, 100]"  # pixels of the frame; see make_part


def text(browser: Browser, element: str) -> str:
    return str(browser.run(f"document.getElementById('{element}').textContent"))


def shows(element: str, expected: str) -> str:
    """In JavaScript: whether an element's text is this."""
    return f"document.getElementById('{element}').textContent === {expected!r}"


def stands(state: str) -> str:
    """In JavaScript: whether the verdict is in this state."""
    return f"document.getElementById('verdict').dataset.state === '{state}'"


def wait_for_text(browser: Browser, element: str, expected: str) -> None:
    browser.wait_for(shows(element, expected))


def wait_for_all(browser: Browser, *expressions: str) -> Any:
    """Wait until all of them are true at the same moment; returns the value of the last one."""
    return browser.wait_for(" && ".join(f"({expression})" for expression in expressions))


def mean_rgb(browser: Browser, canvas: str, box: str) -> list[float]:
    values: list[float] = browser.run(MEAN % (canvas, box))
    return values


def set_slider(browser: Browser, element: str, value: float) -> None:
    browser.run(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')) }})(document.getElementById('{element}'))"
    )


def wait_for_picture(browser: Browser, number: int) -> None:
    browser.wait_for(f"document.getElementById('picture').dataset.number === '{number}'")


def thumbs(browser: Browser) -> list[Any]:
    found: list[Any] = browser.run(
        "[...document.querySelectorAll('#rejects button')].map(b => [b.dataset.picture, b.disabled, b.ariaLabel])"
    )
    return found
