"""The report's charts, measured: where bars, lines and points stand, and what they count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge_train.charts import histogram, roc

THRESHOLD = 0.4
SCORES: dict[str, tuple[Any, Any]] = {
    "usual": (np.random.default_rng(1).normal(0.3, 0.05, 200), np.random.default_rng(2).normal(0.7, 0.2, 80)),
    "far outlier": ([0.1, 0.2, 0.35], [0.5, 40.0, 900.0]),
    "all equal": ([0.4] * 5, [0.4] * 3),
    "all above": ([0.5, 0.6], [0.7]),
    "all below": ([0.1, 0.2], [0.3]),
    "negative": ([-3.0, 0.1], [0.6]),
    "only good": ([0.1, 0.2, 0.5], []),
    "only defective": ([], [0.1, 0.2, 0.5]),
    "one part": ([0.2], []),
}


def drawn(chart: Any, good: Sequence[float], defective: Sequence[float]) -> ElementTree.Element:
    """The chart's figure as a tree, which also proves it well-formed."""
    scores = np.array([*good, *defective], dtype=np.float64)
    is_defective = np.arange(len(scores)) >= len(good)
    return ElementTree.fromstring(chart(scores, is_defective, THRESHOLD))


def caption(figure: ElementTree.Element) -> str:
    return figure.findtext("figcaption", "")


def points_xy(element: ElementTree.Element) -> NDArray[np.float64]:
    return np.array([point.split(",") for point in element.attrib["points"].split()], dtype=np.float64)


@pytest.mark.parametrize(("good", "defective"), SCORES.values(), ids=SCORES)
def test_histogram_counts_every_part_on_its_side_of_the_threshold(
    good: Sequence[float], defective: Sequence[float]
) -> None:
    figure = drawn(histogram, good, defective)
    (line,) = figure.findall(".//line[@class='threshold']")
    for kind, scores in (("good", good), ("defective", defective)):
        bars = figure.findall(f".//rect[@class='bar {kind}']")
        assert sum(int(bar.attrib["data-count"]) for bar in bars) == len(scores)
        right = [bar for bar in bars if float(bar.attrib["x"]) > float(line.attrib["x1"])]
        assert sum(int(bar.attrib["data-count"]) for bar in right) == sum(score > THRESHOLD for score in scores)
        assert all(float(bar.attrib["height"]) > 0 and 40 < float(bar.attrib["x"]) < 470 for bar in bars)
        assert bool(len(scores)) == (f"{len(scores)} {kind}" in [text.text for text in figure.iter("text")])


def test_bars_are_as_high_as_their_count() -> None:
    figure = drawn(histogram, [0.1, 0.1, 0.1, 0.1, 0.2], [0.9, 0.9])
    bars = figure.findall(".//rect[@class='bar good']")
    height_of = {bar.attrib["data-count"]: float(bar.attrib["height"]) for bar in bars}
    assert height_of["4"] == pytest.approx(4 * height_of["1"], abs=0.05)


def test_threshold_line_stands_where_the_axis_says() -> None:
    figure = drawn(histogram, *SCORES["usual"])
    ticks = figure.findall(".//text[@class='tick']")
    x = [float(tick.attrib["x"]) for tick in ticks]
    slope, offset = np.polyfit([float(tick.text or "") for tick in ticks], x, 1)
    (line,) = figure.findall(".//line[@class='threshold']")
    assert 3 <= len(ticks) <= 8
    assert float(line.attrib["x1"]) == float(line.attrib["x2"])
    assert float(line.attrib["x1"]) == pytest.approx(slope * THRESHOLD + offset, abs=0.05)
    assert "threshold 0.4" in [text.text for text in figure.iter("text")]


def test_scores_far_above_the_threshold_are_told_in_the_caption() -> None:
    far = caption(drawn(histogram, [0.1], [0.5, 900.0]))
    assert "The last bar also counts all scores above 1.2" in far
    assert far.endswith("up to 900.")
    assert "also counts" not in caption(drawn(histogram, [0.1], [0.5, 0.6]))


def test_roc_curve_with_its_auroc_and_the_thresholds_point() -> None:
    figure = drawn(roc, [0.1, 0.5], [0.3, 0.8])
    assert caption(figure) == (
        "ROC curve, AUROC 0.7500. The dot is the threshold: 50.0% of defective and 50.0% of good parts rejected."
    )
    (curve,) = figure.findall(".//polyline[@class='roc']")
    (left, bottom), *_, (right, top) = points = points_xy(curve)
    rates = (points - (left, bottom)) / (right - left, top - bottom)
    np.testing.assert_allclose(rates, [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]], atol=1e-3)
    (dot,) = figure.iter("circle")
    at = (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
    assert at == pytest.approx(((left + right) / 2, (bottom + top) / 2), abs=0.02)


@pytest.mark.parametrize(("good", "defective"), [([0.1, 0.5], []), ([], [0.1])], ids=["only good", "only defective"])
def test_roc_needs_both_kinds_and_says_so(good: Sequence[float], defective: Sequence[float]) -> None:
    sentence = drawn(roc, good, defective)
    assert sentence.tag == "p"
    assert "both needed for a ROC curve" in (sentence.text or "")
