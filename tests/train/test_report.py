"""The HTML report: parsed back, its words read and its pictures decoded (its charts: test_charts.py)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge_train.report import JudgedPart, write_report

VOID = {"meta", "img"}
SVG_LEAVES = {"line", "rect", "circle", "polyline", "polygon", "stop"}
SIZE_PX = 64
THRESHOLD = 0.4
NASTY = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """Every element with its attributes and text; refuses tags that do not close in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # tag around it, text
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, f"HTML does not close <{tag}/>"
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        wanted = set(css_class.split())
        return [a for t, a in self.elements if t == tag and wanted <= set(a.get("class", "").split())]

    def text(self, tag: str) -> list[str]:
        return [text for around, text in self.texts if around == tag]


def part(name: str = "crack/003.png", defect: str = "crack", score: float = 0.7) -> JudgedPart:
    """A grey part whose map is 0 but for a square of height ``score``, which is also its mask."""
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=np.bool_)
    mask[SIZE_PX // 2 :, : SIZE_PX // 2] = True
    return JudgedPart(
        name=name,
        defect=defect,
        score=score,
        frame_rgb_u8=np.full((SIZE_PX, SIZE_PX, 3), (110, 120, 130), dtype=np.uint8),
        anomaly_map=(score * mask).astype(np.float32),
        mask=None if defect == "good" else mask,
    )


def write(path: Path, **changes: Any) -> Page:
    random = np.random.default_rng(0)
    content: dict[str, Any] = {
        "title": "Flange, camera 2",
        "facts": {"Model": "edge-lite0", "Seed": "7"},
        "metrics_rows": [
            {"precision": "fp32", "AUROC": "0.9876", "p50 ms": "12.5"},
            {"precision": "int8", "AU-PRO": "0.91"},
        ],
        "scores": np.concatenate([random.normal(0.3, 0.04, 60), random.normal(0.6, 0.1, 25)]),
        "defects": ["good"] * 60 + ["crack"] * 25,
        "threshold": THRESHOLD,
        "parts": {"Most doubtful": [part()], "Clearest defects (best)": [part("dent/001.png", "dent", 0.9)]},
    }
    write_report(path, **(content | changes))
    return Page(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def test_page_stands_alone(path: Path) -> None:
    page = write(path)
    assert page.source.startswith("<!DOCTYPE html>")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    assert "http" not in page.source and "url(" not in page.source.replace("url(#heat)", "")
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in page.all("img"))
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "href"]
    assert len(page.all("style")) == 1
    assert {"lang": "en"} in page.all("html") and {"charset": "utf-8"} in page.all("meta")


def test_whatever_the_strings_hold_is_shown_as_text(path: Path) -> None:
    nasty_part = part(NASTY, NASTY)
    page = write(
        path,
        title=NASTY,
        facts={NASTY: NASTY},
        metrics_rows=[{NASTY: NASTY}],
        defects=["good"] * 60 + [NASTY] * 25,
        parts={NASTY: [nasty_part]},
    )
    assert "<script" not in page.source
    for tag in ("h1", "title", "dt", "dd", "th", "td", "h3", "h4"):
        assert NASTY in page.text(tag), tag
    assert any(text.startswith(NASTY) for text in page.text("p"))


def test_a_file_name_that_is_not_utf8_does_not_stop_the_report(path: Path) -> None:
    page = write(path, parts={"Parts": [part("gr\udce9.png")]})  # how Python reads a Latin-1 name from the disk
    assert page.text("h4") == ["gr?.png"]


def test_table_has_every_row_and_a_dash_where_a_value_is_missing(path: Path) -> None:
    page = write(path)
    assert page.text("th") == ["precision", "AUROC", "p50 ms", "AU-PRO"]
    dash = "\N{EN DASH}"
    assert page.text("td") == ["fp32", "0.9876", "12.5", dash, "int8", dash, dash, "0.91"]


def test_facts_are_listed(path: Path) -> None:
    page = write(path)
    assert dict(zip(page.text("dt"), page.text("dd"), strict=True)) == {"Model": "edge-lite0", "Seed": "7"}


def test_headline_numbers(path: Path) -> None:
    scores, defects = np.array([0.1, 0.2, 0.5, 0.3, 0.8, 0.9]), ["good"] * 3 + ["crack"] * 3
    page = write(path, scores=scores, defects=defects)
    assert page.text("b") == ["6", "2 of 3", "1 of 3", "0.8889", "0.4"]
    assert "parts judged: 3 good, 3 defective" in page.text("span")


def test_charts_are_of_all_parts_and_not_of_the_shown_ones(path: Path) -> None:
    page = write(path)
    for kind, count in (("good", 60), ("defective", 25)):
        assert sum(int(bar["data-count"]) for bar in page.all("rect", f"bar {kind}")) == count
    assert len(page.all("polyline", "roc")) == 1


def test_only_good_parts_without_a_mask_give_a_report_without_a_roc_curve(path: Path) -> None:
    shown = {"Good parts nearest to a reject": [part("good/000.png", "good", 0.3)], "Clearest defects (best)": []}
    page = write(path, scores=np.array([0.1, 0.2]), defects=["good"] * 2, metrics_rows=[], facts={}, parts=shown)
    assert not page.all("polyline")
    assert any("both needed for a ROC curve" in text for text in page.text("p"))
    assert page.text("h2") == ["Scores", "Parts, one by one"]
    assert page.text("h3") == ["Good parts nearest to a reject"]
    assert not page.all("table") and not page.all("dl")
    assert [image["alt"] for image in page.all("img")] == ["picture", "heat map"]
    assert "no defect" in page.text("div")


@pytest.mark.parametrize(
    ("defect", "score", "verdict"),
    [
        ("good", 0.4, "passed"),
        ("good", 0.41, "rejected, false reject"),
        ("crack", 0.4, "passed, missed defect"),
        ("crack", 0.41, "rejected"),
    ],
)
def test_verdict_of_a_part(path: Path, defect: str, score: float, verdict: str) -> None:
    page = write(path, parts={"Parts": [part("a.png", defect, score)]})
    assert page.text("span")[-1] == verdict
    assert page.all("span", "wrong" if "," in verdict else "right")


def decoded(image: Mapping[str, str]) -> NDArray[np.int64]:
    data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None and [int(image["height"]), int(image["width"])] == list(bgr.shape[:2])
    return bgr[..., ::-1].astype(np.int64)


def test_pictures_of_a_part(path: Path) -> None:
    page = write(path, parts={"Parts": [part(score=2.0 * THRESHOLD)]})
    images = page.all("img")
    assert [image["alt"] for image in images] == ["picture", "heat map", "ground truth"]
    picture, heat, truth = (decoded(image) for image in images)
    inside, outside = (SIZE_PX * 3 // 4, SIZE_PX // 4), (SIZE_PX // 4, SIZE_PX * 3 // 4)
    np.testing.assert_allclose(picture[inside], (110, 120, 130), atol=6)
    np.testing.assert_allclose(heat[outside], (110, 120, 130), atol=6)  # below the scale: unchanged
    assert heat[inside][0] > heat[inside][1:].max() + 20  # above the scale: red
    assert truth[inside][0] > 180 and truth[inside][1:].max() < 80
    assert np.ptp(truth[outside]) < 10 and truth[outside].min() > 180
    edge = heat[SIZE_PX // 2, : SIZE_PX // 2]
    assert edge.min(axis=1).mean() > 150  # the white line around what lies above the threshold


def test_colour_scale_is_the_same_for_all_parts_and_stated(path: Path) -> None:
    weak, strong = part("a.png", "crack", 0.3), part("b.png", "crack", 5.0)
    shared = np.zeros((SIZE_PX, SIZE_PX), dtype=np.float32)
    shared[:16, -16:] = 0.9 * THRESHOLD
    weak, strong = (replace(p, anomaly_map=np.maximum(p.anomaly_map, shared)) for p in (weak, strong))
    page = write(path, parts={"Parts": [weak, strong]})
    heat = [decoded(image) for image in page.all("img") if image["alt"] == "heat map"]
    np.testing.assert_allclose(heat[0][4:12, -12:-4], heat[1][4:12, -12:-4], atol=6)
    assert any("from 0.5 to 1.5 times the threshold" in text for text in page.text("p"))
    assert page.text("text")[-3:] == ["0.2", "threshold 0.4", "0.6"]


def test_a_defect_nobody_marked_is_said_so(path: Path) -> None:
    page = write(path, parts={"Parts": [replace(part(), mask=None)]})
    assert "not marked" in page.text("div")


def test_large_and_long_pictures_are_made_smaller(path: Path) -> None:
    long = JudgedPart(
        name="a.png",
        defect="good",
        score=0.1,
        frame_rgb_u8=np.zeros((100, 1200, 3), np.uint8),
        anomaly_map=np.zeros((100, 1200), np.float32),
        mask=None,
    )
    page = write(path, parts={"Parts": [long]})
    assert {(image["width"], image["height"]) for image in page.all("img")} == {("288", "24")}


def test_forty_strongly_textured_parts_stay_below_6_mb(path: Path) -> None:
    random = np.random.default_rng(0)
    textured = JudgedPart(
        name="felt.png",
        defect="crack",
        score=0.7,
        frame_rgb_u8=random.normal(128, 25, (256, 256, 3)).clip(0, 255).astype(np.uint8),
        anomaly_map=cv2.GaussianBlur(random.random((256, 256), dtype=np.float32), (0, 0), 4),
        mask=cv2.GaussianBlur(random.random((256, 256)), (0, 0), 8) > 0.5,
    )
    write(path, parts={"Parts": [textured] * 40})
    assert path.stat().st_size < 6_000_000


def test_a_reader_keeps_the_old_report_while_the_new_one_is_written(path: Path) -> None:
    old = write(path, title="old").source
    with path.open(encoding="utf-8") as reader:
        beginning = reader.read(100)
        write(path, title="new")
        assert beginning + reader.read() == old
    assert "<h1>new</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(path: Path) -> None:
    path.mkdir()
    (path / "kept.txt").write_text("kept")
    with pytest.raises(OSError):
        write(path)
    assert [p.name for p in path.parent.rglob("*")] == ["report.html", "kept.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"defects": ["good"]}, r"\(85,\) scores and 1 defects", id="lengths"),
        pytest.param({"scores": np.zeros(0), "defects": []}, "at least one", id="no part"),
        pytest.param({"scores": np.array([np.nan]), "defects": ["good"]}, "NaN or infinite", id="nan"),
        pytest.param({"threshold": 0.0}, r"threshold is 0\.0; expected a positive", id="zero threshold"),
        pytest.param({"threshold": np.inf}, "threshold is inf", id="infinite threshold"),
    ],
)
def test_unusable_numbers_are_refused_unwritten(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(path, **changes)
    assert not path.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda p: replace(p, frame_rgb_u8=p.frame_rgb_u8[1:]), r"frame \(63, 64, 3\).*differ", id="frame"),
        pytest.param(lambda p: replace(p, mask=np.zeros((3, 3), np.bool_)), r"mask \(3, 3\).*differ", id="mask"),
        pytest.param(lambda p: replace(p, score=float("nan")), "NaN or infinite", id="score"),
        pytest.param(lambda p: replace(p, anomaly_map=p.anomaly_map * np.nan), "NaN or infinite", id="map"),
    ],
)
def test_a_part_that_does_not_fit_together_is_refused_by_name(
    spoil: Callable[[JudgedPart], JudgedPart], message: str
) -> None:
    with pytest.raises(ValueError, match=r"crack/003\.png: .*" + message):
        spoil(part())
