"""A measurement as one HTML file that holds everything it shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rdedge.atomic import write_bytes
from rdedge.bench.charts import histogram, timeline
from rdedge.bench.record import EXPLAINED, STAGES, WHOLE, Board, Phase, Record
from rdedge.bench.stats import percentiles
from rdedge.bench.table import COLUMNS, EN_DASH, Row, number, phase_facts, record_facts, stage_rows

# The look of rdedge_train.report, of which the line's side knows nothing.
_STYLE = """
:root{color-scheme:light;--ink:#1c2430;--soft:#5a6675;--line:#dde2e8;--good:#2f6fb0;--wash:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1160px;margin:0 auto;padding:32px 20px 56px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 20px}h2{font-size:1.25rem;margin:40px 0 12px}
h3{font-size:1.05rem;margin:28px 0 10px}h1,h3,dd{overflow-wrap:anywhere}
p{margin:0 0 12px;color:var(--soft);max-width:75ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tiles div{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:12px 16px}
.tiles b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.87rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:24px}
figure{margin:0}figcaption{color:var(--soft);font-size:.87rem}svg{display:block;width:100%;height:auto;max-width:560px}
.axis{stroke:#9aa5b1}.bar{fill:var(--good)}.line{fill:none;stroke:var(--good);stroke-width:1.2;stroke-linejoin:round}
svg text{font-size:13px;fill:var(--soft);stroke:#fff;stroke-width:4px;paint-order:stroke}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 14px 7px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:.87rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:10px 28px;margin:0}
dt{color:var(--soft);font-size:.87rem}dd{margin:0}
footer{margin-top:48px;border-top:1px solid var(--line);padding-top:12px;color:var(--soft);font-size:.87rem}
"""


def write_page(path: Path, record: Record) -> None:
    """A reader of ``path`` sees the old file or the whole new one. Raises OSError."""
    title = f"Latency of {record.subject.get('model', 'a bundle')}, {record.date_utc[:10]}"
    body = [f"<h1>{escape(title)}</h1>", _tiles(record)]
    body += [_phase(phase) for phase in record.phases]
    if record.device_parts_ms:
        rows = stage_rows(record.device_parts_ms, tuple(record.device_parts_ms))
        body.append("<h2>On the device, by its own events</h2><p>Blank frames, enqueued one by one, in ms.</p>")
        body.append(_table([COLUMNS, *rows]))
    body.append(f"<h2>How it was measured</h2>{_facts([('command', record.command), *record_facts(record)])}")
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n<footer>Written by rdedge. This file holds everything it shows.</footer></main></body></html>\n"
    )
    # File names that are not UTF-8 reach us with characters that cannot be written.
    write_bytes(path, page.encode("utf-8", errors="replace"))


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
    return f'<div class="tiles">{"".join(f"<div><b>{big}</b><span>{text}</span></div>" for big, text in tiles)}</div>'


def _ms(value: float | None) -> str:
    return number(value) if value is None else f"{value:.1f} ms"


def _phase(phase: Phase) -> str:
    body = f"<h2>{escape(phase.name[:1].upper() + phase.name[1:])}</h2>"
    rows = [(*row, EXPLAINED[row[0]]) for row in stage_rows(phase.times_ms)]
    body += _table([(*COLUMNS, "what it is"), *rows]) + _facts(phase_facts(phase))
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
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell or EN_DASH)}</td>' for cell in row)}</tr>" for row in body)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts)}</dl>"
