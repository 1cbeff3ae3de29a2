"""Score histogram and ROC curve as inline SVG for the report; colours and fonts come from the report's style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rdedge.report_page import axis_ticks
from rdedge_train.metrics import auroc, roc_curve

_BARS = 40
_OVERFLOW_AT = 3.0  # times the threshold: higher scores are counted into the histogram's last bar
_CHART_W, _CHART_H = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 466, 30, 274  # the plot within the chart
_LABEL_H = 26  # above the tallest bar of a panel


def histogram(scores: NDArray[np.float64], is_defective: NDArray[np.bool_], threshold: float) -> str:
    """``<figure>`` of scores (n,): good parts above, defective below, each on its own scale, if any.

    No bar crosses the threshold, which must be positive. Every bar has its number of parts as ``data-count``.
    """
    highest = min(float(scores.max()), _OVERFLOW_AT * threshold)
    width = (max(highest, threshold) - min(float(scores.min()), threshold)) / _BARS or threshold / _BARS
    # Bar k counts the scores above threshold + k * width and up to the next edge, as a score on the threshold passes.
    bar_of_part = np.ceil((np.minimum(scores, highest) - threshold) / width).astype(int) - 1
    first, last = min(int(bar_of_part.min()), -1), max(int(bar_of_part.max()), 0)
    low, high = threshold + first * width, threshold + (last + 1) * width
    x = _LEFT + (threshold - low) / (high - low) * (_RIGHT - _LEFT)
    anchor = "start" if x < _CHART_W / 2 else "end"
    drawing = _x_axis(low, high, "score") + _y_title("parts")
    drawing += f'<line class="threshold" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP - 8}" y2="{_BOTTOM}"/>'
    drawing += f'<text x="{x:.2f}" y="{_TOP - 14}" text-anchor="{anchor}">threshold {threshold:.4g}</text>'
    panels = (("good", ~is_defective), ("defective", is_defective))
    kinds = [(kind, is_kind) for kind, is_kind in panels if is_kind.any()]
    panel_h = (_BOTTOM - _TOP) / len(kinds)
    for i, (kind, is_kind) in enumerate(kinds, start=1):
        counts = np.bincount(bar_of_part[is_kind] - first, minlength=last + 1 - first).tolist()
        drawing += _bars(kind, counts, _TOP + i * panel_h, panel_h - _LABEL_H, low, width)
    caption = "Parts by score. Everything to the right of the threshold is rejected."
    if scores.max() > high:
        caption += f" The last bar also counts all scores above {high:.3g}, up to {scores.max():.3g}."
    return _chart("Histogram of the scores of good and defective parts", drawing, caption)


def roc(scores: NDArray[np.float64], is_defective: NDArray[np.bool_], threshold: float) -> str:
    """``<figure>`` of scores (n,): the ROC curve and the threshold's point on it; a ``<p>`` where a kind is missing."""
    if is_defective.all() or not is_defective.any():
        return "<p>Good and defective parts are both needed for a ROC curve; these parts are all of one kind.</p>"

    def xy(fpr: float, tpr: float) -> str:
        return f"{_LEFT + fpr * (_RIGHT - _LEFT):.2f},{_BOTTOM - tpr * (_BOTTOM - _TOP):.2f}"

    drawing = ""
    for fifth in range(6):
        y = _BOTTOM - fifth / 5 * (_BOTTOM - _TOP)
        drawing += f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>'
        drawing += f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{fifth / 5:.1f}</text>'
    curve = " ".join(xy(fpr, tpr) for fpr, tpr in zip(*roc_curve(scores, is_defective), strict=True))
    here = [float((scores[chosen] > threshold).mean()) for chosen in (~is_defective, is_defective)]
    x, y_here = xy(*here).split(",")
    drawing += _x_axis(0.0, 1.0, "share of good parts rejected") + _y_title("share of defective parts rejected")
    drawing += f'<polyline class="chance" points="{xy(0, 0)} {xy(1, 1)}"/>'
    drawing += f'<polygon class="under" points="{curve} {xy(1, 0)}"/><polyline class="roc" points="{curve}"/>'
    drawing += f'<circle cx="{x}" cy="{y_here}" r="5"/>'
    caption = (
        f"ROC curve, AUROC {auroc(scores, is_defective):.4f}. The dot is the threshold: "
        f"{here[1]:.1%} of defective and {here[0]:.1%} of good parts rejected."
    )
    return _chart("ROC curve", drawing, caption)


def _bars(kind: str, counts: Sequence[int], base: float, bar_h: float, low: float, width: float) -> str:
    """One panel of the histogram, standing on ``base``, its tallest bar ``bar_h`` high."""
    px = (_RIGHT - _LEFT) / len(counts)
    tallest = max(counts)
    drawing = f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{base}" y2="{base}"/>'
    for y, number in ((base, 0), (base - bar_h, tallest)):
        drawing += f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{number}</text>'
    for k, count in enumerate(counts):
        if count:
            height = bar_h * count / tallest
            start = low + k * width
            drawing += (
                f'<rect class="bar {kind}" data-count="{count}" x="{_LEFT + k * px + 0.5:.2f}" y="{base - height:.2f}" '
                f'width="{px - 1:.2f}" height="{height:.2f}">'
                f"<title>{count} {kind}, {start:.4g} to {start + width:.4g}</title></rect>"
            )
    label = f'<text class="{kind}" x="{_RIGHT}" y="{base - bar_h - 6}" text-anchor="end">{sum(counts)} {kind}</text>'
    return drawing + label


def _x_axis(low: float, high: float, title: str) -> str:
    """Line, title and round numbers."""
    axis = f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
    for share, text in axis_ticks(low, high):
        x = _LEFT + share * (_RIGHT - _LEFT)
        axis += f'<line class="axis" x1="{x:.2f}" x2="{x:.2f}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
        axis += f'<text class="tick" x="{x:.2f}" y="{_BOTTOM + 18}" text-anchor="middle">{text}</text>'
    return axis + f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_CHART_H - 8}" text-anchor="middle">{title}</text>'


def _y_title(title: str) -> str:
    return f'<text x="{_LEFT - 40}" y="{_TOP - 14}">{title}</text>'


def _chart(label: str, drawing: str, caption: str) -> str:
    svg = f'<svg viewBox="0 0 {_CHART_W} {_CHART_H}" role="img" aria-label="{label}">{drawing}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
