"""A measurement as one HTML file that holds everything it shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rdedge import report_page
from rdedge.bench.charts import histogram, timeline
from rdedge.bench.record import EXPLAINED, STAGES, WHOLE, Board, Phase, Record
from rdedge.bench.stats import percentiles
from rdedge.bench.table import COLUMNS, Row, number, phase_facts, record_facts, stage_rows
from rdedge.report_page import html_facts, html_table, html_tiles

_HEADINGS = ("stage, ms", *COLUMNS[1:])
_STYLE = """
td:nth-child(9){min-width:18rem}.scroll+dl{margin-top:14px}
.bar{fill:var(--good)}.line{fill:none;stroke:var(--good);stroke-width:1.2;stroke-linejoin:round}
"""


def write_page(path: Path, record: Record) -> None:
    """See rdedge.report_page. Raises OSError."""
    title = f"Latency of {record.subject.get('model', 'a bundle')}, {record.date_utc[:10]}"
    body = [f"<h1>{escape(title)}</h1>", _tiles(record)]
    if len(record.phases) > 1:
        whole = {phase.name: phase.times_ms.get(WHOLE, []) for phase in record.phases}
        rows = [("capture to verdict, ms", *COLUMNS[1:]), *stage_rows(whole, tuple(whole))]
        body.append(f"<h2>Side by side</h2>{_table(rows)}")
    body += [_phase(phase) for phase in record.phases]
    if record.device_parts_ms:
        rows = stage_rows(record.device_parts_ms, tuple(record.device_parts_ms))
        body.append("<h2>On the device, by its own events</h2><p>Blank frames, enqueued one by one.</p>")
        body.append(_table([_HEADINGS, *rows]))
    body.append(f"<h2>How it was measured</h2>{html_facts([('command', record.command), *record_facts(record)])}")
    report_page.write_page(path, title, "\n".join(body), _STYLE)


def _tiles(record: Record) -> str:
    first = record.phases[0]
    p50, _, p95, p99, p999 = percentiles(first.times_ms.get(WHOLE, []))
    tiles = [
        (_ms(p50), "capture to verdict, median"),
        (_ms(p95), "p95"),
        (_ms(p99), "p99"),
        (_ms(p999), "p99.9"),
        (f"{first.dropped:,}", f"of {first.offered:,} frames dropped"),
    ]
    if record.cold_start_ms:
        tiles.append((_ms(statistics.median(record.cold_start_ms)), "cold start, median"))
    return html_tiles(tiles)


def _ms(value: float | None) -> str:
    return number(value) if value is None else f"{value:.1f} ms"


def _phase(phase: Phase) -> str:
    body = f"<h2>{escape(phase.name[:1].upper() + phase.name[1:])}</h2>"
    rows = [(*row, EXPLAINED[row[0]]) for row in stage_rows(phase.times_ms)]
    body += _table([(*_HEADINGS, "what it is"), *rows]) + html_facts(phase_facts(phase))
    for stage in reversed(STAGES):
        samples = phase.times_ms.get(stage)
        if samples:
            charts = histogram(stage, samples) + timeline(stage, phase.at_s, samples)
            body += f'<h3>{stage}</h3><div class="charts">{charts}</div>'
    return body + (_board(phase.board) if phase.board is not None else "")


def _board(board: Board) -> str:
    """Clock, temperature and power over time, as far as the board says."""
    charts = ""
    for column, (label, unit) in enumerate((("GPU clock", "MHz"), ("hottest sensor", "C"), ("power", "W")), start=1):
        known = [(row[0], value) for row in board.timeline if (value := row[column]) is not None]
        if known:
            charts += timeline(label, [at for at, _ in known], [value for _, value in known], unit)
    return f'<h3>board</h3><div class="charts">{charts}</div>' if charts else ""


def _table(rows: Sequence[Row]) -> str:
    head, *body = rows
    return html_table([dict(zip(head, row, strict=True)) for row in body])
