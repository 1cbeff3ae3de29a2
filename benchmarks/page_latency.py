"""From a reject's verdict to the operator's eye, in headless Chromium on the same machine; and what the page costs.

A line judges demo parts with a real bundle, paced or as fast as it can; some are rejects. For each reject the time from
its verdict to the browser's next but one frame after the verdict's word, the picture and the thumbnail is taken, by one
clock: the browser calls back through the pipe it is driven by, which is part of the figure. The cost to the line is the
time of ``write`` and that of an inspection, in turns with and without a viewer.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chromium import Browser
from rdedge import Inspector
from rdedge.frames import Frame
from rdedge.page import OperatorPage
from results_file import write_results

Picture = NDArray[np.uint8]
THINGS = ("verdict", "picture", "thumbnail")
PAUSE_S = 1.5  # between rejects: longer than one stays on show, so that each has to be shown anew
WATCH = """(() => {
  const told = new Set();
  const get = (id) => document.getElementById(id);
  const look = () => {
    const label = /^part (\\d+)\\n/.exec(get("detail").textContent)?.[1];
    const facts = {
      verdict: get("verdict").dataset.state === "reject" ? label : null,
      picture: /^Part (\\d+)/.exec(get("caption").textContent)?.[1],
      thumbnail: document.querySelector("#rejects button[data-picture]:not([data-picture=none])")?.ariaLabel.slice(7),
    };
    for (const [thing, part] of Object.entries(facts)) {
      const text = `${thing} ${part}`;
      if (!part || told.has(text)) continue;
      told.add(text);
      requestAnimationFrame(() => requestAnimationFrame(() => tell(text)));
    }
  };
  const everything = { subtree: true, childList: true, characterData: true, attributes: true };
  new MutationObserver(look).observe(document, everything);
})()"""


class Line(threading.Thread):
    """Judges until stopped: parts from memory, rejects every PAUSE_S."""

    def __init__(self, bundle: Path, parts: Path, page: OperatorPage, interval_s: float):
        super().__init__(name="line")
        self.rejected_s: dict[int, float] = {}  # part -> time.monotonic of its verdict
        self.write_s: list[float] = []
        self.inspect_ms: list[float] = []
        self.interval_s = interval_s
        self.stopping = threading.Event()
        self._bundle = bundle
        self._good, self._bad = pictures(parts, "test/good"), pictures(parts, "test/[!g]*")
        self._sink = page.sink("benchmark")

    def run(self) -> None:
        """See threading.Thread."""
        reject_at_s = time.monotonic() + PAUSE_S
        with Inspector.open(self._bundle) as inspector:
            for index, good, bad in zip(itertools.count(), itertools.cycle(self._good), itertools.cycle(self._bad)):
                is_due = time.monotonic() >= reject_at_s
                if is_due:
                    reject_at_s = time.monotonic() + PAUSE_S
                started_s = time.monotonic()
                picture = bad if is_due else good
                inspection = inspector.inspect_frame(
                    Frame(image_bgr_u8=picture, index=index, captured_at_s=started_s, source="demo")
                )
                judged_s = time.monotonic()
                self._sink.write(inspection)
                self.write_s.append(time.monotonic() - judged_s)
                self.inspect_ms.append(inspection.times.total_ms)
                if inspection.verdict.is_anomalous and is_due:
                    self.rejected_s[index] = judged_s
                if self.stopping.wait(max(0.0, self.interval_s - (time.monotonic() - started_s))):
                    return


def pictures(parts: Path, pattern: str) -> list[Picture]:
    """Up to 20 of a folder of the demo's parts."""
    found = [cv2.imread(str(path)) for path in sorted(parts.glob(f"{pattern}/*.png"))[:20]]
    if not found:
        raise SystemExit(f"no pictures in {parts}/{pattern}: run `make demo` first")
    return [picture.astype(np.uint8, copy=False) for picture in found if picture is not None]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("rdedge-demo/bundle"), help="(%(default)s)")
    parser.add_argument("--parts", type=Path, default=Path("rdedge-demo/parts"), help="(%(default)s)")
    parser.add_argument("--rejects", type=int, default=20, help="a line speed (%(default)s)")
    args = parser.parse_args()
    paces = {"10 parts/s": 0.1, "as fast as it judges": 0.0}
    figures: dict[str, object] = {}
    rows = ["| line | shown after the verdict | rejects | median ms | p95 ms | max ms |", "|---|---|---|---|---|---|"]
    for name, interval_s in paces.items():
        shown_ms, costs = measure(args.bundle, args.parts, interval_s, args.rejects)
        figures[name] = {"shown_ms": shown_ms, "costs": costs}
        for thing in THINGS:
            count = f"{len(shown_ms[thing])} of {args.rejects}"
            median, p95, most = np.percentile(shown_ms[thing], [50, 95, 100])
            rows.append(f"| {name} | {thing} | {count} | {median:.0f} | {p95:.0f} | {most:.0f} |")
    rows += ["", "| line | viewer | parts | inspection ms, median | p95 | write µs, median | p99 |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name in paces:
        costs = figures[name]["costs"]  # type: ignore[index]
        rows += [f"| {name} | {viewer} | {cost} |" for viewer, cost in costs.items()]
    write_results("page_latency", "\n".join(rows), figures, ("opencv-python-headless", "onnxruntime"))


def measure(
    bundle: Path, parts: Path, interval_s: float, rejects: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds by what was shown; and the line's costs with and without a viewer, as cells of a table."""
    shown_s: dict[tuple[str, int], float] = {}
    page = OperatorPage(port=0, session="benchmark")
    line = Line(bundle, parts, page, interval_s)
    try:
        with Browser() as browser:
            browser.call("Runtime.addBinding", name="tell")
            browser.heard = lambda text, at_s: shown_s.update({(text.split()[0], int(text.split()[1])): at_s})
            browser.set_screen(1024, 600)
            browser.open(page.url)
            browser.run(WATCH)
            line.start()
            listen(browser, lambda: len(line.rejected_s) > rejects)
            costs = compare(browser, line, page.url)
    finally:
        line.stopping.set()
        if line.ident is not None:
            line.join()
        page.close()
    counted = list(line.rejected_s)[1 : rejects + 1]  # the first is the warm-up
    shown_ms = {
        thing: [1e3 * (shown_s[thing, part] - line.rejected_s[part]) for part in counted if (thing, part) in shown_s]
        for thing in THINGS
    }
    return shown_ms, costs


def listen(browser: Browser, is_over: Callable[[], bool]) -> None:
    """Take up what the browser tells until something is over, and a little longer."""
    while not is_over():
        browser.listen(0.2)
    until_s = time.monotonic() + PAUSE_S / 2
    while time.monotonic() < until_s:
        browser.listen(0.1)


def compare(browser: Browser, line: Line, url: str) -> dict[str, str]:
    """Rounds with and without the page open, in turns."""
    taken: dict[str, tuple[list[float], list[float]]] = {"none": ([], []), "one": ([], [])}
    for _ in range(5):
        for viewer, address in (("none", "about:blank"), ("one", url)):
            browser.open(address)
            listen(browser, lambda: True)
            first = len(line.inspect_ms)
            until_s = time.monotonic() + 3.0
            listen(browser, lambda until_s=until_s: time.monotonic() > until_s)  # type: ignore[misc]
            taken[viewer][0].extend(line.inspect_ms[first:])
            taken[viewer][1].extend(line.write_s[first:])
    cells = {}
    for viewer, (inspect_ms, write_s) in taken.items():
        median, p95 = np.percentile(inspect_ms, [50, 95])
        write_us = 1e6 * np.percentile(write_s, [50, 99])
        cells[viewer] = f"{len(inspect_ms)} | {median:.1f} | {p95:.1f} | {write_us[0]:.0f} | {write_us[1]:.0f}"
    return cells


if __name__ == "__main__":
    main()
