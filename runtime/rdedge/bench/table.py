"""A measurement as text: what was measured on what, then a row a stage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rdedge.bench.record import EXPLAINED, STAGES, WHOLE, Board, Phase, Record
from rdedge.bench.stats import PERCENTILES, jitter, percentiles, samples_for
from rdedge.text import EN_DASH

COLUMNS = ("stage", *(f"p{p:g}" for p in PERCENTILES), "max", "jitter")
Row = tuple[str, ...]


def number(value: float | None) -> str:
    """Milliseconds, or the dash of what is not known."""
    return EN_DASH if value is None else f"{value:.2f}"


def stage_rows(times_ms: dict[str, list[float]], order: tuple[str, ...] = STAGES) -> list[Row]:
    """A row a stage that was measured, as in ``COLUMNS``."""
    rows = []
    for stage in order:
        samples = times_ms.get(stage)
        if samples:
            values = [*percentiles(samples), max(samples), jitter(samples)]
            rows.append((stage, *map(number, values)))
    return rows


def too_few(count: int) -> str:
    """Which percentiles are left blank and why; "" where none is."""
    blank = [p for p in PERCENTILES if count < samples_for(p)]
    if not blank:
        return ""
    needs = ", ".join(f"p{p:g} {samples_for(p):,}" for p in blank)
    return f"{count:,} frames; blank where fewer than one frame would lie beyond it: {needs} frames are needed"


def phase_facts(phase: Phase) -> list[tuple[str, str]]:
    """What stands beside the numbers of a phase."""
    measured = len(phase.times_ms.get(WHOLE, ()))
    fps = f"{measured / phase.seconds:.1f} frames/s, " if measured > 1 and phase.seconds > 0 else ""
    facts = [
        (
            "frames",
            f"{fps}{phase.offered:,} offered = {phase.judged:,} judged + {phase.dropped:,} dropped; "
            f"{phase.rejected:,} rejected, {phase.lost:,} lost by the camera",
        )
    ]
    warm_up = phase.warm_up_ms.get(WHOLE)
    if warm_up:
        text = f"{len(warm_up)} frames, not in the table: first {warm_up[0]:.2f} ms, median {np.median(warm_up):.2f} ms"
        facts.append(("warm-up", text))
    if (blanks := too_few(measured)) != "":
        facts.append(("percentiles", blanks))
    return facts + (board_facts(phase.board) if phase.board is not None else [])


def board_facts(board: Board) -> list[tuple[str, str]]:
    """A Jetson's state while it was measured."""
    facts = []
    for name, clocks in (("GPU clock", board.gpu_mhz), ("CPU clock", board.cpu_mhz)):
        if clocks is not None:
            low, middle, high = clocks
            facts.append((name, f"{low:.0f} to {high:.0f} MHz, median {middle:.0f} ({board.samples} samples)"))
    if board.temperatures_c:
        hottest = max(board.temperatures_c, key=lambda name: board.temperatures_c[name])
        facts.append(("temperature", f"highest {board.temperatures_c[hottest]:.1f} C ({hottest})"))
    facts.append(("throttling", board.throttling))
    if board.power_w is not None:
        facts.append(("power", f"{board.power_w:.2f} W ({' + '.join(board.power_rails)})"))
    if board.energy_mj is not None:
        facts.append(("energy", f"{board.energy_mj:.1f} mJ a verdict, of the whole module"))
    return facts


def record_facts(record: Record) -> list[tuple[str, str]]:
    """What holds for the whole measurement."""
    facts = [*record.subject.items(), ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items()))]
    if record.cold_start_ms:
        low, middle, high = (float(v) for v in np.quantile(record.cold_start_ms, [0, 0.5, 1]))
        times = len(record.cold_start_ms)
        spread = f"{low:.0f} to {high:.0f} ms, median of {times}" if times > 1 else "once"
        facts.append(("cold start", f"process start to first verdict {middle:.0f} ms ({spread})"))
    memory = record.memory
    if memory.run_peak_mb is not None:
        facts.append(("peak memory", f"{memory.run_peak_mb:.0f} MB resident, of a fresh `rdedge run`"))
    facts.append(("of this bench", f"{memory.bench_peak_mb:.0f} MB resident, its pictures and records included"))
    if memory.device_mb is not None:
        facts.append(("device memory", f"{memory.device_mb:.0f} MB held by the engine"))
    return facts + [("note", note) for note in record.notes]


def lines(record: Record) -> Iterator[str]:
    """The whole measurement, line by line."""
    yield from _aligned_facts(record_facts(record))
    for phase in record.phases:
        yield ""
        yield f"{phase.name}, ms"
        yield from aligned([COLUMNS, *stage_rows(phase.times_ms)])
        yield from _aligned_facts(phase_facts(phase))
    if record.device_parts_ms:
        yield ""
        yield "the device's part by its own events, blank frames, enqueued one by one, ms"
        order = tuple(record.device_parts_ms)
        yield from aligned([COLUMNS, *stage_rows(record.device_parts_ms, order)])
    yield ""
    yield from _aligned_facts([(stage, EXPLAINED[stage]) for stage in STAGES if stage in record.phases[0].times_ms])
    yield "  jitter: mean absolute difference of one frame to the next"


def aligned(rows: list[Row]) -> Iterator[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        yield "  ".join([f"{first:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(rest, widths[1:], strict=True))])


def _aligned_facts(facts: list[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        yield f"  {name:<{width}}  {text}"
