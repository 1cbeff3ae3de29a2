"""The report's section on precisions: what the gate measured, scores against FP32, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from rdedge.fidelity import Gate
from rdedge_export.gate import Sensitivity
from rdedge_export.precisions import Lowered

_SHOWN_LAYERS = 24
_PLOT_W, _PLOT_H, _MARGIN = 420, 320, 46
_ROW_H, _LABEL_W, _BAR_W = 18, 330, 230
_LEAST = 1e-6  # losses below are drawn as this on the logarithmic scale


def precision_section(
    fp32_scores: NDArray[np.float32], is_defective: NDArray[np.bool_], lowered: Sequence[Lowered]
) -> str:
    """HTML of the section; scores and is_defective (n,) of the gate's frames. Empty if nothing was lowered."""
    html = ""
    for one in lowered:
        name = one.precision.upper()
        rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(one.gate).items())
        notes = "".join(f"<li>{escape(note)}</li>" for note in one.notes)
        charts = scatter(fp32_scores, one.scores, is_defective, name)
        if one.sensitivities:
            charts += sensitivity_chart(one.sensitivities, one.gate.layers_kept_back, name)
        html += f'<h2>{name} against FP32</h2><dl>{rows}</dl><div class="charts">{charts}</div><ul>{notes}</ul>'
    return html


def scatter(fp32: NDArray[np.float32], other: NDArray[np.float32], is_defective: NDArray[np.bool_], name: str) -> str:
    """``<figure>`` of every part's score in both precisions; on the diagonal they agree."""
    low = float(min(fp32.min(), other.min()))
    high = float(max(fp32.max(), other.max()))
    span = high - low or 1.0

    def x(value: float) -> float:
        return _MARGIN + (value - low) / span * (_PLOT_W - _MARGIN - 10)

    def y(value: float) -> float:
        return _PLOT_H - _MARGIN - (value - low) / span * (_PLOT_H - _MARGIN - 10)

    drawing = f'<line class="chance" x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}"/>'
    for a, b, is_bad in zip(fp32.tolist(), other.tolist(), is_defective.tolist(), strict=True):
        kind = "defective" if is_bad else "good"
        drawing += f'<circle class="bar {kind}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>'
    for value in (low, high):
        drawing += f'<text x="{x(value):.1f}" y="{_PLOT_H - 26}" text-anchor="middle">{value:.3g}</text>'
        drawing += f'<text x="{_MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    drawing += f'<text x="{_PLOT_W / 2}" y="{_PLOT_H - 6}" text-anchor="middle">score in FP32</text>'
    caption = f"Each part's score in {name} (upwards) and FP32. On the dashed line both agree."
    svg = (
        f'<svg viewBox="0 0 {_PLOT_W + 20} {_PLOT_H}" role="img" aria-label="Scores in {name} and FP32">{drawing}</svg>'
    )
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def sensitivity_chart(sensitivities: Sequence[Sensitivity], kept_back: Sequence[str], name: str) -> str:
    """``<figure>`` of the costliest layers, worst first, on a logarithmic scale; those kept back in another colour."""
    shown = sensitivities[:_SHOWN_LAYERS]
    worst = max(shown[0].map_cosine_loss, 10 * _LEAST)
    drawing = ""
    for row, one in enumerate(shown):
        width = _BAR_W * np.log10(max(one.map_cosine_loss, _LEAST) / _LEAST) / np.log10(worst / _LEAST)
        top = row * _ROW_H
        kind = "defective" if one.layer in kept_back else "good"
        drawing += f'<text x="{_LABEL_W - 6}" y="{top + 13}" text-anchor="end">{escape(one.layer)}</text>'
        drawing += f'<rect class="bar {kind}" x="{_LABEL_W}" y="{top + 3}" width="{width:.1f}" height="12">'
        drawing += f"<title>{escape(one.layer)}: {one.map_cosine_loss:.2g}</title></rect>"
        drawing += f'<text x="{_LABEL_W + width + 6:.1f}" y="{top + 13}">{one.map_cosine_loss:.1g}</text>'
    size = f"0 0 {_LABEL_W + _BAR_W + 60} {len(shown) * _ROW_H + 6}"
    svg = f'<svg viewBox="{size}" role="img" aria-label="Cost of each layer in {name}">{drawing}</svg>'
    caption = (
        f"What a layer alone in {name} takes from the map's cosine with FP32 (logarithmic), worst first: "
        f"{len(shown)} of {len(sensitivities)} layers. The second colour marks layers kept back."
    )
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _facts(gate: Gate) -> dict[str, str]:
    facts = {
        "Measured on": f"{gate.good_frames} held-out good and {gate.labelled_frames} labelled parts",
        "Map cosine, lowest": f"{gate.map_cosine:.4f} (at least {gate.min_map_cosine:g})",
        "Map difference, 99.9th percentile": f"{gate.p999_abs_map:.3g}",
        "Verdicts that flip": f"{gate.verdict_flips:.2%} (at most {gate.max_verdict_flips:.2%}, or one)",
        "Layers kept back": ", ".join(gate.layers_kept_back) or "none",
    }
    if gate.score_rank_correlation is not None:
        facts["Score rank correlation"] = f"{gate.score_rank_correlation:.4f}"
    if gate.auroc_change is not None:
        facts["AUROC change"] = f"{gate.auroc_change:+.4f} (at least {-gate.max_auroc_drop:g})"
    if gate.quantisation is not None:
        facts["Calibrated on"] = f"{gate.quantisation.images} images: {gate.quantisation.source}"
        facts["Ranges by"] = gate.quantisation.method
        tuning = gate.quantisation.fine_tuning
        if tuning is not None:
            facts["Fine-tuned"] = f"yes, {tuning.epochs} epochs" if tuning.is_kept else "tried, lost, not kept"
    return facts
