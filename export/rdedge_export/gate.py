"""The gate: how far a graph of lower precision is from FP32 on the same frames, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from rdedge.backends import batches
from rdedge.errors import ExportError, UsageError
from rdedge.fidelity import Gate, QuantisationSpec
from rdedge.threshold import fit_threshold
from rdedge_export.map_cosine import map_cosines
from rdedge_export.observers import session
from rdedge_export.parity import Answers
from rdedge_train.metrics import auroc


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a precision may cost. One flipped verdict is allowed whatever the share: less cannot be measured."""

    auroc_drop: float = 0.005
    verdict_flips: float = 0.01
    map_cosine: float = 0.98  # the least allowed; without labelled parts there is little else to go by

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From ``auroc=0.005,flips=0.01,cosine=0.98``, any of the three. Raises UsageError."""
        fields = {"auroc": "auroc_drop", "flips": "verdict_flips", "cosine": "map_cosine"}
        values: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            try:
                value = float(number)
            except ValueError:
                value = float("nan")
            if name not in fields or not 0.0 <= value <= 1.0:
                raise UsageError(f"--budget {text}", remedy="give shares, e.g. auroc=0.005,flips=0.01,cosine=0.98")
            values[fields[name]] = value
        return cls(**values)


DEFAULT_BUDGET = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFrames:
    """Frames uint8 (n, H, W, 3): held-out good parts, and labelled ones (none: n = 0) with is_defective (n,)."""

    good_u8: NDArray[np.uint8]
    labelled_u8: NDArray[np.uint8]
    is_defective: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """What the gate measures of one graph; the fields are those of rdedge.contract.Gate."""

    map_cosine: float
    p999_abs_map: float
    score_rank_correlation: float | None
    verdict_flips: float
    auroc_change: float | None
    flipped: int

    def __str__(self) -> str:
        auroc_text = "" if self.auroc_change is None else f", AUROC {self.auroc_change:+.4f}"
        return f"map cosine {self.map_cosine:.4f}, {self.flipped} verdicts flip ({self.verdict_flips:.1%}){auroc_text}"


class Gatekeeper:
    """Holds FP32's answers to the gate's frames and measures other graphs against them."""

    def __init__(self, fp32: ModelProto, frames: GateFrames, false_reject_rate: float, budget: Budget):
        self.frames = frames
        self.budget = budget
        self._rate = false_reject_rate
        self.good = run(fp32, frames.good_u8)
        self.labelled = run(fp32, frames.labelled_u8)

    def measure(self, model: ModelProto) -> tuple[Distance, Answers]:
        """Distance of a graph, and its answers to all frames, good parts first. Raises ExportError if one is NaN."""
        good, labelled = run(model, self.frames.good_u8), run(model, self.frames.labelled_u8)
        both = _joined(good, labelled)
        if not (np.isfinite(both.maps).all() and np.isfinite(both.scores).all()):
            raise ExportError("the graph answers NaN or infinity", remedy="export without this precision")
        reference = self.answers
        flips = self._flips(good, labelled)
        change = None
        is_defective = self.frames.is_defective
        if is_defective.any() and not is_defective.all():
            change = auroc(labelled.scores, is_defective) - auroc(self.labelled.scores, is_defective)
        distance = Distance(
            map_cosine=float(min(map_cosines(reference.maps, both.maps))),
            p999_abs_map=float(np.quantile(np.abs(both.maps - reference.maps), 0.999)),
            score_rank_correlation=rank_correlation(reference.scores, both.scores),
            verdict_flips=float(flips.mean()),
            auroc_change=change,
            flipped=int(flips.sum()),
        )
        return distance, both

    @property
    def answers(self) -> Answers:
        """FP32's answers to all frames, good parts first."""
        return _joined(self.good, self.labelled)

    def accepts(self, distance: Distance) -> bool:
        """Whether a distance is within the budget."""
        return (
            (distance.flipped <= 1 or distance.verdict_flips <= self.budget.verdict_flips)
            and (distance.auroc_change is None or distance.auroc_change >= -self.budget.auroc_drop)
            and distance.map_cosine >= self.budget.map_cosine
        )

    def as_contract(self, distance: Distance, kept_back: Sequence[str], quantisation: QuantisationSpec | None) -> Gate:
        """The entry of a contract."""
        return Gate(
            good_frames=len(self.frames.good_u8),
            labelled_frames=len(self.frames.labelled_u8),
            map_cosine=distance.map_cosine,
            p999_abs_map=distance.p999_abs_map,
            score_rank_correlation=distance.score_rank_correlation,
            verdict_flips=distance.verdict_flips,
            auroc_change=distance.auroc_change,
            max_auroc_drop=self.budget.auroc_drop,
            max_verdict_flips=self.budget.verdict_flips,
            min_map_cosine=self.budget.map_cosine,
            layers_kept_back=tuple(kept_back),
            quantisation=quantisation,
        )

    def _flips(self, good: Answers, labelled: Answers) -> NDArray[np.bool_]:
        """(n,) True where the verdict differs from FP32's, each graph at the threshold of its own scores.

        A threshold is never counted on the frames it was fitted on: from good parts to labelled ones, or, where there
        are none, from one half of the good parts to the other and back.
        """
        if len(labelled.scores):
            here = labelled.scores > self._limit(good.scores)
            return np.asarray(here != (self.labelled.scores > self._limit(self.good.scores)))
        if len(good.scores) < 2:
            raise ExportError("the gate needs two held-out good parts", remedy="train with a larger --held-out")
        flips = np.zeros(len(good.scores), np.bool_)
        for start in (0, 1):
            fitted, judged = slice(start, None, 2), slice(1 - start, None, 2)
            here = good.scores[judged] > self._limit(good.scores[fitted])
            flips[judged] = here != (self.good.scores[judged] > self._limit(self.good.scores[fitted]))
        return flips

    def _limit(self, good_scores: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(fit_threshold(good_scores, self._rate).value)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one layer alone costs in the lower precision: 1 - map cosine, mean over frames."""

    layer: str
    map_cosine_loss: float


def put_back_until(accepts: Callable[[int], bool], most: int) -> int | None:
    """The least k of 1..most that is accepted, if acceptance grows with k; None if none is.

    Doubles first, as most graphs need few layers put back, then halves the gap.
    """
    low, high = 0, 1
    while not accepts(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def run(model: ModelProto, frames_u8: NDArray[np.uint8]) -> Answers:
    """A graph's answers to frames uint8 (n, H, W, 3), as many at a time as it takes."""
    runner = session(model)
    height, width = frames_u8.shape[1:3]
    maps = np.empty((len(frames_u8), height, width), np.float32)
    scores = np.empty(len(frames_u8), np.float32)
    (frame,) = model.graph.input
    batch = frame.type.tensor_type.shape.dim[0].dim_value
    map_name, score_name = (output.name for output in model.graph.output)
    done = 0
    for batch_u8, count in batches(frames_u8, batch):
        anomaly_map, score = runner.run([map_name, score_name], {frame.name: batch_u8})
        maps[done : done + count], scores[done : done + count] = anomaly_map[:count, 0], score[:count]
        done += count
    return Answers(maps, scores)


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    """Spearman's, ties counting half; None where all values of one side are equal."""
    ranks = []
    for values in (a, b):
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(sizes) - (sizes - 1) / 2)[group])
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.clip(np.corrcoef(ranks[0], ranks[1])[0, 1], -1.0, 1.0))


def _joined(a: Answers, b: Answers) -> Answers:
    return Answers(np.concatenate([a.maps, b.maps]), np.concatenate([a.scores, b.scores]))
