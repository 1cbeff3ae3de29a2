"""Two measurements beside each other: ratios of their percentiles, and whether they show a difference at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdedge.bench.record import STAGES, Record, read_record
from rdedge.bench.stats import CONFIDENCE, PERCENTILES, Series, ratios
from rdedge.bench.table import Row, aligned
from rdedge.errors import UsageError
from rdedge.text import EN_DASH


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as long ``b`` takes as ``a`` at one percentile, with a 95 % interval."""

    phase: str
    stage: str
    percentile: float
    ratio: float
    low: float
    high: float

    @property
    def shows_difference(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1.0 <= self.high


def read_side(path: Path) -> list[Record]:
    """One measurement, or all of a folder as runs of the same thing. Raises UsageError."""
    if not path.is_dir():
        return [read_record(path)]
    files = sorted(path.glob("*.json"))
    if not files:
        raise UsageError(f"{path}: holds no measurements", remedy="name a file that `rdedge bench --json` wrote")
    return [read_record(file) for file in files]


def differences(a: list[Record], b: list[Record]) -> list[str]:
    """What makes the measurements two of different things; versions and commands may differ."""
    found = []
    names = dict.fromkeys(name for record in (*a, *b) for name in record.subject)
    for name in names:
        of_a, of_b = ({record.subject.get(name, "not known") for record in side} for side in (a, b))
        if of_a | of_b != of_a & of_b or len(of_a) > 1:
            found.append(f"{name}: {' and '.join(sorted(of_a))} against {' and '.join(sorted(of_b))}")
    return found


def compare(a: list[Record], b: list[Record]) -> list[Ratio]:
    """Every stage of every phase that all have, at every percentile with frames enough."""
    found = []
    for phase in a[0].phases:
        for stage in STAGES:
            of_a, of_b = _series(a, phase.name, stage), _series(b, phase.name, stage)
            if of_a and of_b:
                for percentile, known in zip(PERCENTILES, ratios(of_a, of_b), strict=True):
                    if known is not None:
                        ratio, low, high = known
                        found.append(
                            Ratio(phase=phase.name, stage=stage, percentile=percentile, ratio=ratio, low=low, high=high)
                        )
    return found


def _series(side: list[Record], phase_name: str, stage: str) -> list[Series]:
    """Each record's times of a stage; empty unless all have some, and none that a clock too coarse saw as 0."""
    series = []
    for record in side:
        samples = next((p.times_ms.get(stage, []) for p in record.phases if p.name == phase_name), [])
        if not samples or np.median(samples) <= 0.0:
            return []
        series.append(np.array(samples))
    return series


def lines(a: list[Record], b: list[Record]) -> Iterator[str]:
    """The comparison as text. Raises UsageError where the records share nothing to compare."""
    found = compare(a, b)
    if not found:
        raise UsageError(
            "the measurements share no stage with frames enough for a ratio", remedy="measure with --frames 100 or more"
        )
    yield f"A {_versions(a)}"
    yield f"B {_versions(b)}"
    for phase in dict.fromkeys(ratio.phase for ratio in found):
        yield ""
        yield f"{phase}: B takes so many times as long as A ({CONFIDENCE:.0%} interval)"
        rows: list[Row] = [("stage", "percentile", "ratio", "interval", "")]
        for each in found:
            if each.phase == phase:
                verdict = "no difference shown"
                if each.shows_difference:
                    verdict = "B is slower" if each.ratio > 1.0 else "B is faster"
                interval = f"{each.low:.3f} to {each.high:.3f}"
                rows.append((each.stage, f"p{each.percentile:g}", f"{each.ratio:.3f}", interval, verdict))
        yield from aligned(rows)
    cold = [[ms for record in side for ms in record.cold_start_ms] for side in (a, b)]
    if all(cold):
        yield ""
        yield f"cold start: {np.median(cold[1]) / np.median(cold[0]):.3f} times as long (medians; no interval)"
    yield ""
    yield "Each row stands for itself: of twenty without a difference one shows some by chance."
    if len(a) == 1 or len(b) == 1:
        yield (
            "One run of a side: what differs from run to run (memory layout, other load) is not in the intervals. "
            "Measure each side several times in turn, and name folders."
        )


def _versions(side: list[Record]) -> str:
    every = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record.versions.items()) for record in side)
    runs = f"{len(side)} run{'s' if len(side) > 1 else ''}"
    return f"{runs} of {side[0].date_utc or EN_DASH}: {' and '.join(every)}"
