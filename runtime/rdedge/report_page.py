"""The look of every report: one HTML file that holds all it shows, tables, facts, tiles, numbers on axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from rdedge.atomic import write_bytes
from rdedge.text import EN_DASH

_STYLE = """
:root{color-scheme:light;--ink:#1c2430;--soft:#5a6675;--line:#dde2e8;--good:#2f6fb0;--defective:#c2491d;--wash:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1160px;margin:0 auto;padding:32px 20px 56px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 20px}h2{font-size:1.25rem;margin:40px 0 12px}
h3{font-size:1.05rem;margin:28px 0 10px}h1,h3,h4,dd{overflow-wrap:anywhere}
p{margin:0 0 12px;color:var(--soft);max-width:75ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tiles div{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:12px 16px}
.tiles b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.87rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:24px}
figure{margin:0}figcaption{color:var(--soft);font-size:.87rem}svg{display:block;width:100%;height:auto}
.charts svg{max-width:560px}.axis{stroke:#9aa5b1}
svg text{font-size:13px;fill:var(--soft);stroke:#fff;stroke-width:4px;paint-order:stroke}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 14px 7px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:.87rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:10px 28px;margin:0}
dt{color:var(--soft);font-size:.87rem}dd{margin:0}
footer{margin-top:48px;border-top:1px solid var(--line);padding-top:12px;color:var(--soft);font-size:.87rem}
"""


def write_page(path: Path, title: str, body: str, style: str = "") -> None:
    """Write one HTML file; ``title`` is escaped, ``body`` is HTML, ``style`` what its own parts need more.

    A reader of ``path`` sees the old file or the whole new one. Raises OSError.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body><main>\n"
        + body
        + "\n<footer>Written by rdedge. This file holds everything it shows.</footer></main></body></html>\n"
    )
    # File names that are not UTF-8 reach us with characters that cannot be written.
    write_bytes(path, page.encode("utf-8", errors="replace"))


def html_tiles(tiles: Iterable[tuple[str, str]]) -> str:
    """Pairs of a figure and what it says, escaped, large and in a row."""
    cells = "".join(f"<div><b>{escape(big)}</b><span>{escape(text)}</span></div>" for big, text in tiles)
    return f'<div class="tiles">{cells}</div>'


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """``<table>`` of rows by column name; everything is escaped, nothing is a dash."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for row in rows:
        body += f"<tr>{''.join(f'<td>{escape(row.get(column) or EN_DASH)}</td>' for column in columns)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_facts(facts: Iterable[tuple[str, str]]) -> str:
    """``<dl>`` of names and what is to be said of them, escaped."""
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts)}</dl>"


def axis_ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Three to eight round numbers from ``low`` to ``high``, which must differ: where each lies, 0..1, and its text."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 3))  # rounded, it may lie a hair above a third: 0.3 / 3 < 0.1
    step = max((multiple * power for multiple in (1, 2, 5) if multiple * power <= span / 3), default=power)
    decimals = max(0, -math.floor(math.log10(step)))
    for k in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield (k * step - low) / span, f"{k * step:.{decimals}f}"
