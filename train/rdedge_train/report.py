"""The report of a training run: one HTML file with charts, tables and judged parts, readable without internet."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.report_page import html_facts, html_table, html_tiles, write_page
from rdedge_train.charts import histogram, roc
from rdedge_train.metrics import auroc

GOOD = "good"
COLOUR_RANGE = (0.5, 1.5)  # of the threshold: its middle is where a part is rejected
_PICTURE_PX = 288  # longest side; the page shows pictures smaller, so this is sharp on dense screens too
_JPEG_QUALITY = 80
_OVERLAY_OPACITY = 0.7
_MASK_RGB = (214, 40, 20)

_STYLE = """
.grid{stroke:#e9edf1}
.bar.good,svg text.good{fill:var(--good)}.bar.defective,svg text.defective{fill:var(--defective)}
.threshold{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 4}
.roc{fill:none;stroke:var(--good);stroke-width:2.5;stroke-linejoin:round}.under{fill:var(--good);opacity:.1}
.chance{stroke:#9aa5b1;stroke-dasharray:3 4}.legend{max-width:420px;margin-bottom:12px}
.parts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr));gap:16px}
.part{border:1px solid var(--line);border-radius:8px;padding:12px 14px;break-inside:avoid}
.part h4{font-size:.95rem;margin:0}.part>p{margin:0 0 8px;font-size:.87rem}
.right{color:#1d7044;font-weight:600}.wrong{color:#b3261e;font-weight:600}
.pictures{display:grid;grid-template-columns:repeat(3,1fr);gap:8px}
.pictures img{display:block;width:100%;height:auto;border-radius:4px}
.nothing{display:grid;place-items:center;background:var(--wash);border-radius:4px;color:var(--soft);font-size:.8rem}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPart:
    """One part with everything that is drawn of it; all pictures in the size of the detector's input.

    Raises ValueError for shapes that do not match and for numbers that are not finite.
    """

    name: str
    """File name relative to the data folder, e.g. ``crack/003.png``."""
    defect: str
    """``good`` or the kind of defect."""
    score: float
    frame_rgb_u8: NDArray[np.uint8]
    """(H, W, 3), as the detector saw it."""
    anomaly_map: NDArray[np.float32]
    """(H, W), in the unit of the score."""
    mask: NDArray[np.bool_] | None
    """(H, W), True where the part is defective; None where nobody marked it."""

    def __post_init__(self) -> None:
        size_hw = self.anomaly_map.shape
        if self.frame_rgb_u8.shape != (*size_hw, 3) or (self.mask is not None and self.mask.shape != size_hw):
            mask = "no mask" if self.mask is None else f"mask {self.mask.shape}"
            raise ValueError(f"{self.name}: frame {self.frame_rgb_u8.shape}, map {size_hw}, {mask}: sizes differ")
        if not (math.isfinite(self.score) and np.isfinite(self.anomaly_map).all()):
            raise ValueError(f"{self.name}: the score or a pixel of the map is NaN or infinite")


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics_rows: Sequence[Mapping[str, str]],
    scores: NDArray[np.float64],
    defects: Sequence[str],
    threshold: float,
    parts: Mapping[str, Sequence[JudgedPart]],
    sections: str = "",
) -> None:
    """Write the report; a reader of ``path`` sees the old file or the whole new one, never a piece.

    ``scores`` (n,) and ``defects`` (n; ``good`` or the kind of defect) are of every judged part and feed the charts;
    ``parts`` are the few that are shown, by heading. A part is rejected when its score is above ``threshold``.
    All strings may hold anything, they are escaped; but for ``sections``, HTML that goes before the last section.
    Raises ValueError for unequal lengths, no part at all, a score that is not finite and a threshold that is not
    positive; OSError if the folder cannot be written.
    """
    if scores.shape != (len(defects),) or not len(scores):
        raise ValueError(f"{scores.shape} scores and {len(defects)} defects; expected as many, and at least one")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite")
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold is {threshold}; expected a positive number")
    is_defective = np.array([defect != GOOD for defect in defects])
    body = [
        f"<h1>{escape(title)}</h1>",
        _tiles(scores, is_defective, threshold),
        '<h2>Scores</h2><div class="charts">',
        histogram(scores, is_defective, threshold),
        roc(scores, is_defective, threshold),
        "</div>",
        f"<h2>Metrics</h2>{html_table(metrics_rows)}" if metrics_rows else "",
        _gallery(parts, threshold),
        sections,
        f"<h2>How it was made</h2>{html_facts(facts.items())}" if facts else "",
    ]
    write_page(path, title, "\n".join(body), _STYLE)


def _tiles(scores: NDArray[np.float64], is_defective: NDArray[np.bool_], threshold: float) -> str:
    is_rejected = scores > threshold
    n_defective = int(is_defective.sum())
    n_good = len(scores) - n_defective
    tiles = [(f"{len(scores)}", f"parts judged: {n_good} good, {n_defective} defective")]
    if n_defective:
        tiles.append((f"{int((is_rejected & is_defective).sum())} of {n_defective}", "defective parts rejected"))
    if n_good:
        tiles.append((f"{int((is_rejected & ~is_defective).sum())} of {n_good}", "good parts rejected"))
    if n_good and n_defective:
        tiles.append((f"{auroc(scores, is_defective):.4f}", "AUROC over parts"))
    tiles.append((f"{threshold:.4g}", "threshold: a part scoring above it is rejected"))
    return html_tiles(tiles)


def _gallery(parts: Mapping[str, Sequence[JudgedPart]], threshold: float) -> str:
    """Every heading that has parts, under one legend."""
    sections = ""
    for heading, shown in parts.items():
        if shown:
            cards = "".join(_card(part, threshold) for part in shown)
            sections += f'<h3>{escape(heading)}</h3><div class="parts">{cards}</div>'
    return _legend(threshold) + sections if sections else ""


def _heat_colours(level: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Level (H, W), 0..1 on the scale -> RGB colours (H, W, 3), and opacity (H, W, 1), full from the middle on."""
    colours_bgr = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    opacity = _OVERLAY_OPACITY * np.minimum(2.0 * level, 1.0)
    return colours_bgr[..., ::-1].astype(np.uint8), opacity[..., None].astype(np.float32)


def _legend(threshold: float) -> str:
    colours, opacity = _heat_colours(np.linspace(0.0, 1.0, 21, dtype=np.float32)[None])
    stops = "".join(
        f'<stop offset="{k / 20}" stop-color="rgb({red},{green},{blue})" stop-opacity="{opacity[0, k, 0]:.3f}"/>'
        for k, (red, green, blue) in enumerate(colours[0].tolist())
    )
    low, high = (f"{factor * threshold:.4g}" for factor in COLOUR_RANGE)
    labels = ""
    for x, anchor, text in ((0, "start", low), (210, "middle", f"threshold {threshold:.4g}"), (420, "end", high)):
        labels += f'<text x="{x}" y="38" text-anchor="{anchor}">{text}</text>'
    return (
        "<h2>Parts, one by one</h2><p>Each part as picture, heat map and ground truth. All heat maps share this scale, "
        f"from {COLOUR_RANGE[0]:g} to {COLOUR_RANGE[1]:g} times the threshold; below it the picture shows through. "
        "A white line surrounds what lies above the threshold, the middle of the scale.</p>"
        '<svg class="legend" viewBox="0 0 420 44" role="img" aria-label="Colour scale of the heat maps">'
        f'<defs><linearGradient id="heat">{stops}</linearGradient></defs><rect width="420" height="20" fill="#aaa"/>'
        '<rect width="420" height="20" fill="url(#heat)"/><rect x="209" width="2" height="20" fill="#fff"/>'
        f"{labels}</svg>"
    )


def _card(part: JudgedPart, threshold: float) -> str:
    is_rejected, is_defective = part.score > threshold, part.defect != GOOD
    verdict = "rejected" if is_rejected else "passed"
    if is_rejected != is_defective:
        verdict += ", missed defect" if is_defective else ", false reject"
    verdict_class = "right" if is_rejected == is_defective else "wrong"
    if part.mask is not None and part.mask.any():
        truth = _image(_marked(part.frame_rgb_u8, part.mask), "ground truth")
    else:
        truth = f'<div class="nothing">{"not marked" if is_defective else "no defect"}</div>'
    return (
        f'<article class="part"><h4>{escape(part.name)}</h4><p>{escape(part.defect)} · score {part.score:.4g} · '
        f'<span class="{verdict_class}">{verdict}</span></p><div class="pictures">'
        f"{_image(part.frame_rgb_u8, 'picture')}{_image(_overlay(part, threshold), 'heat map')}{truth}"
        "</div></article>\n"
    )


def _overlay(part: JudgedPart, threshold: float) -> NDArray[np.uint8]:
    low, high = (factor * threshold for factor in COLOUR_RANGE)
    colours, opacity = _heat_colours(np.clip((part.anomaly_map - low) / (high - low), 0.0, 1.0))
    picture = np.ascontiguousarray((part.frame_rgb_u8 * (1.0 - opacity) + colours * opacity).astype(np.uint8))
    is_above = (part.anomaly_map > threshold).astype(np.uint8)
    outlines, _ = cv2.findContours(is_above, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, (255, 255, 255), 1)
    return picture


def _marked(frame_rgb_u8: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture in pale grey, the defect in colour."""
    pale = 175 + 0.3 * frame_rgb_u8.mean(axis=2, keepdims=True)
    return np.where(mask[..., None], _MASK_RGB, pale).astype(np.uint8)


def _image(rgb_u8: NDArray[np.uint8], alt: str) -> str:
    """``<img>`` with the picture inside, as JPEG."""
    height, width = rgb_u8.shape[:2]
    scale = min(1.0, _PICTURE_PX / max(height, width))
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk_bgr = cv2.cvtColor(cv2.resize(rgb_u8, size_wh, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", shrunk_bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" width="{size_wh[0]}" height="{size_wh[1]}">'
