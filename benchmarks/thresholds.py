"""Whether thresholds keep their word: rates of unseen good parts against the stated interval, and what defects slip by.

Simulated scores, whose true rates are known, and the scores of a trained run: its held-out parts and the good test
parts are drawn anew into parts to fit on and unseen ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rdedge.good_parts import Threshold
from rdedge.threshold import Method, fit_threshold
from rdedge_train.data import GOOD, find_images, read_frames
from rdedge_train.run_folder import open_run
from rdedge_train.subject import open_subject
from results_file import write_results

Floats = NDArray[np.float64]
RESAMPLINGS = 100
RULES: tuple[Method, ...] = ("quantile", "pot")
SIMULATED = ((30, 0.01), (152, 0.01), (152, 0.001), (1000, 0.01))
REAL_PARTS = (30, 48, 100, 152)
REAL_RATES = (0.01, 0.02, 0.05)


@dataclass(frozen=True, slots=True)
class Population:
    """Scores of good parts: how to draw n, and the share of all above a limit."""

    draw: Callable[[np.random.Generator, int], Floats]
    rate_above: Callable[[float], float]


def _with_odd_parts(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.01, rng.normal(6.0, 1.0, n), rng.normal(size=n))


POPULATIONS = {
    "normal": Population(lambda rng, n: rng.normal(size=n), stats.norm.sf),
    "gamma, shape 2": Population(lambda rng, n: rng.gamma(2.0, size=n), lambda t: float(stats.gamma.sf(t, 2.0))),
    "Student t, 3 degrees": Population(lambda rng, n: rng.standard_t(3.0, n), lambda t: float(stats.t.sf(t, 3.0))),
    "uniform": Population(lambda rng, n: rng.random(n), stats.uniform.sf),
    "normal, 1 % odd parts at 6": Population(
        _with_odd_parts, lambda t: float(0.99 * stats.norm.sf(t) + 0.01 * stats.norm.sf(t - 6.0))
    ),
}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="trained run; without it, simulation only")
    parser.add_argument("--data", type=Path, help="its data folder, with test/good and defects")
    args = parser.parse_args()
    figures: dict[str, object] = {}
    text = (
        f"Each line: {RESAMPLINGS} resamplings; the interval is stated as 95 % sure. `auto` is pot on all lines, but "
        "quantile for 1000 parts.\n\n"
    )
    text += simulate(figures)
    if args.run is not None:
        good, defective = scores_of(args.run, args.data)
        text += (
            f"\n\nScores of a trained run on real parts: {len(good)} good ones (held out and test), drawn anew into "
            f"parts to fit on and unseen ones; {len(defective)} defective ones. A rate of few unseen parts is itself "
            "uncertain: it agrees with the interval if its count is within 95 % of the binomial law of one of its "
            "rates.\n\n" + real(good, defective, figures)
        )
    write_results("thresholds", text, figures, ("numpy", "scipy"))


def simulate(figures: dict[str, object]) -> str:
    """The table of known populations."""
    rows = [
        "| scores | parts | asked | method | true rate, mean (5 to 95 %) | in the interval | spread of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, population in POPULATIONS.items():
        for parts, rate in SIMULATED:
            for method in RULES:
                rng = np.random.default_rng(1)
                limits = [fit_threshold(population.draw(rng, parts), rate, method) for _ in range(RESAMPLINGS)]
                rates = np.array([population.rate_above(limit.value) for limit in limits])
                inside = sum(bool(is_inside(limit, true)) for limit, true in zip(limits, rates, strict=True))
                spread = float(np.std([limit.value for limit in limits]))
                rows.append(
                    f"| {name} | {parts} | {rate:.1%} | {method} | {band(rates)} | {inside} of {RESAMPLINGS} "
                    f"| {spread:.3g} |"
                )
                key = f"{name}, {parts} parts, {rate:g}, {method}"
                figures[key] = {"rate": summary(rates), "inside": inside, "spread": spread}
    return "\n".join(rows)


def real(good: Floats, defective: Floats, figures: dict[str, object]) -> str:
    """The table of a run's scores."""
    rows = [
        "| parts | asked | method | unseen rejected, mean (5 to 95 %) | agrees | defects missed, mean (5 to 95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for parts in (n for n in REAL_PARTS if n < len(good)):
        for rate in REAL_RATES:
            for method in RULES:
                rejected, missed, agreeing = resampled(good, defective, parts, rate, method)
                rows.append(
                    f"| {parts} | {rate:.0%} | {method} | {band(rejected)} | {agreeing} of {RESAMPLINGS} "
                    f"| {band(missed)} |"
                )
                key = f"run, {parts} parts, {rate:g}, {method}"
                figures[key] = {"rejected": summary(rejected), "missed": summary(missed), "agreeing": agreeing}
    return "\n".join(rows)


def resampled(good: Floats, defective: Floats, parts: int, rate: float, method: Method) -> tuple[Floats, Floats, int]:
    """Share of unseen good parts rejected and of defective ones missed, and how often the former agrees."""
    rng = np.random.default_rng(2)
    rejected, missed = np.empty(RESAMPLINGS), np.empty(RESAMPLINGS)
    agreeing = 0
    for i in range(RESAMPLINGS):
        order = rng.permutation(len(good))
        limit = fit_threshold(good[order[:parts]], rate, method)
        unseen = good[order[parts:]]
        count = int((unseen > limit.value).sum())
        fewest = stats.binom.ppf(0.025, len(unseen), limit.rate_low)
        most = stats.binom.ppf(0.975, len(unseen), limit.rate_high)
        agreeing += bool(fewest <= count <= most)
        rejected[i], missed[i] = count / len(unseen), (defective <= limit.value).mean()
    return rejected, missed, agreeing


def scores_of(run_folder: Path, data: Path) -> tuple[Floats, Floats]:
    """Scores of the good parts that the run was not trained on, and of the defective ones."""
    run = open_run(run_folder)
    subject = open_subject(run_folder, "fp32")
    parts = find_images(data).test_parts
    frames_u8 = read_frames(data, [part.path for part in parts], subject.input).frames_u8
    held_out = subject.predict(run.held_out_frames())[1]
    scores = subject.predict(frames_u8)[1]
    is_good = np.array([part.defect == GOOD for part in parts])
    return np.concatenate([held_out, scores[is_good]]).astype(np.float64), scores[~is_good].astype(np.float64)


def is_inside(limit: Threshold, rate: float) -> bool:
    """Whether a rate lies in the stated interval."""
    return limit.rate_low <= rate <= limit.rate_high


def summary(shares: Floats) -> dict[str, float]:
    """Mean and 5 to 95 %."""
    low, high = np.percentile(shares, [5, 95])
    return {"mean": float(shares.mean()), "p5": float(low), "p95": float(high)}


def band(shares: Floats) -> str:
    """The same as text."""
    of = summary(shares)
    return f"{of['mean']:.2%} ({of['p5']:.2%} to {of['p95']:.2%})"


if __name__ == "__main__":
    main()
