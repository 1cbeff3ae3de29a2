"""Histogram and timeline of a stage as inline SVG; colours and fonts come from the page's style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rdedge.report_page import axis_ticks

_W, _H = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 466, 26, 174
_BARS = 40
_POINTS = 1200  # of a timeline; of more, the lowest and highest of each stretch are drawn
_PERCENT_SHOWN = 99.5  # of a histogram; what lies above is counted into its last bar


def histogram(label: str, samples_ms: Sequence[float]) -> str:
    """``<figure>`` of samples in ms, at least one; bars carry their count as ``data-count``."""
    values = np.asarray(samples_ms)
    low, high = float(values.min()), float(np.percentile(values, _PERCENT_SHOWN))
    if high <= low:
        low, high = low - 0.5e-3, low + 0.5e-3
    counts, _ = np.histogram(np.minimum(values, high), _BARS, (low, high))
    tallest = int(counts.max())
    px = (_RIGHT - _LEFT) / _BARS
    drawing = _axis("x", low, high, "ms") + _axis("y", 0.0, float(tallest), "frames")
    for k, count in enumerate(counts.tolist()):
        if count:
            height = (_BOTTOM - _TOP) * count / tallest
            drawing += (
                f'<rect class="bar" data-count="{count}" x="{_LEFT + k * px + 0.5:.2f}" y="{_BOTTOM - height:.2f}" '
                f'width="{px - 1:.2f}" height="{height:.2f}"/>'
            )
    caption = f"{label}: {len(values):,} frames by ms."
    if values.max() > high:
        caption += f" The last bar also counts what took longer than {high:.3g} ms, up to {values.max():.3g}."
    return _figure(f"Histogram of {label}", drawing, caption)


def timeline(label: str, at_s: Sequence[float], values: Sequence[float], unit: str = "ms") -> str:
    """``<figure>`` of values over seconds, one or more, in order of time."""
    x, y = _thinned(np.asarray(at_s, float), np.asarray(values, float))
    low_s, high_s = float(x[0]), max(float(x[-1]), float(x[0]) + 1e-6)
    low, high = min(0.0, float(y.min())), max(float(y.max()), 1e-6)
    points = " ".join(
        f"{_LEFT + (s - low_s) / (high_s - low_s) * (_RIGHT - _LEFT):.2f},"
        f"{_BOTTOM - (v - low) / (high - low) * (_BOTTOM - _TOP):.2f}"
        for s, v in zip(x.tolist(), y.tolist(), strict=True)
    )
    drawing = _axis("x", low_s, high_s, "s") + _axis("y", low, high, unit)
    drawing += f'<polyline class="line" points="{points}"/>'
    return _figure(f"{label} over time", drawing, f"{label}, {unit}, over the seconds of the phase.")


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_POINTS``: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(x) <= _POINTS:
        return x, y
    kept = [
        index
        for stretch in np.array_split(np.arange(len(x)), _POINTS // 2)
        for index in sorted({int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])})
    ]
    return x[kept], y[kept]


def _axis(which: str, low: float, high: float, title: str) -> str:
    """Line, title and round numbers."""
    ends = f'x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT if which == "x" else _LEFT}"'
    axis = f'<line class="axis" {ends} y2="{_BOTTOM if which == "x" else _TOP}"/>'
    for share, text in axis_ticks(low, high):
        if which == "x":
            at = f'x="{_LEFT + share * (_RIGHT - _LEFT):.2f}" y="{_BOTTOM + 18}" text-anchor="middle"'
        else:
            at = f'x="{_LEFT - 7}" y="{_BOTTOM - share * (_BOTTOM - _TOP) + 4:.2f}" text-anchor="end"'
        axis += f"<text {at}>{text}</text>"
    if which == "x":
        return axis + f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_H - 6}" text-anchor="middle">{title}</text>'
    return axis + f'<text x="{_LEFT - 40}" y="{_TOP - 10}">{title}</text>'


def _figure(label: str, drawing: str, caption: str) -> str:
    svg = f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{label}">{drawing}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
