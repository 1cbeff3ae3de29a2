"""How near a graph's answers are to the trained model's, to FP32's and to the truth, as the contract keeps it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rdedge.strict import Count, Sha256, Share, Strict

Correlation = Annotated[float, Meta(ge=-1.0, le=1.0)]
RangeMethod = Literal["minmax", "percentile-99.9", "percentile-99.99", "entropy"]


class Parity(Strict, frozen=True):
    """Distance of this graph from the trained PyTorch model on real frames."""

    frames: Count
    max_abs_map: float
    p999_abs_map: float
    max_abs_score: float
    tolerance: float | None  # None: what is allowed is the gate's affair


class Metrics(Strict, frozen=True):
    """Accuracy measured on labelled parts; None where the data cannot say."""

    images: Count
    image_auroc: Share | None
    pixel_auroc: Share | None
    au_pro: Share | None
    false_reject_rate: Share | None
    miss_rate: Share | None


class FineTuning(Strict, frozen=True):
    """Quantisation-aware fine-tuning against plain calibration; figures are None where that graph was refused."""

    epochs: Annotated[int, Meta(ge=1)]
    is_kept: bool
    tuned_map_cosine: Correlation | None  # mean over held-out good parts
    plain_map_cosine: Correlation | None
    tuned_auroc_change: float | None
    plain_auroc_change: float | None


class QuantisationSpec(Strict, frozen=True):
    """How an INT8 graph's weights and the ranges of its activations were found."""

    method: RangeMethod
    images: Annotated[int, Meta(ge=1)]
    images_sha256: Sha256  # over names and bytes
    source: str  # where the images came from, for the reader
    fine_tuning: FineTuning | None  # None where it was not tried


class Gate(Strict, frozen=True):
    """Distance of a precision from FP32 on the same frames, run by ONNX Runtime and rounded as an engine stores values,
    and the budget it had to keep."""

    good_frames: Count  # held-out good parts, none of them a calibration image
    labelled_frames: Count  # 0 where no labelled parts were given
    map_cosine: Correlation  # of maps less their means; lowest of all frames
    p999_abs_map: float
    score_rank_correlation: Correlation | None  # Spearman's; None where all scores of one precision are equal
    verdict_flips: Share  # of all frames, each precision at its own threshold
    auroc_change: float | None  # None where the labelled parts are not of both kinds
    max_auroc_drop: Share  # the budget
    max_verdict_flips: Share  # the budget; one part may flip whatever its share
    min_map_cosine: Correlation  # the budget
    layers_kept_back: tuple[str, ...]  # would have been in this precision, but had to stay in a higher one
    quantisation: QuantisationSpec | None  # None where nothing is quantised
