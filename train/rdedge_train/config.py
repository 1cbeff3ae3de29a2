"""Everything that decides what a training run computes; recorded in the run and compared on resuming."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from rdedge.contract import InputSpec
from rdedge.errors import UsageError
from rdedge_train.loss import LossReading
from rdedge_train.model import MODELS, SIZE_MULTIPLE_PX, Head, family_of
from rdedge_train.paper import Ocbe
from rdedge_train.tolerance import Tolerance

_DEFAULT_EPOCHS = {"edge": 30, "paper": 200}  # 200: the official schedule
_MAX_COUNT = 10**6  # of epochs, and of images a step: more is a slip of the keyboard
_MAX_LEARNING_RATE = 10.0
_MAX_SEED = 2**63 - 1  # the largest that torch, NumPy and JSON all take


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run's settings. ``learning_rate`` is the peak where the schedule is ``cosine``."""

    model: str
    input: InputSpec
    ocbe: Ocbe
    loss: LossReading
    head: Head
    epochs: Annotated[int, Meta(ge=1, le=_MAX_COUNT)]
    batch_size: Annotated[int, Meta(ge=1, le=_MAX_COUNT)]
    learning_rate: Annotated[float, Meta(gt=0, le=_MAX_LEARNING_RATE)]
    seed: Annotated[int, Meta(ge=0, le=_MAX_SEED)]
    held_out_share: Annotated[float, Meta(gt=0, lt=1)]
    teacher_weights: str
    tolerance: Tolerance = "none"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"no model {self.model!r}", remedy=f"use one of: {', '.join(MODELS)}")
        if any(side % SIZE_MULTIPLE_PX for side in self.input.size_hw):
            height, width = self.input.size_hw
            raise UsageError(
                f"image size {height}x{width}", remedy=f"use multiples of {SIZE_MULTIPLE_PX} pixels, e.g. 256x256"
            )
        if self.head == "residual" and family_of(self.model) != "edge":
            raise UsageError(f"--head residual with {self.model}", remedy="use an edge model, or --head position")
        if (self.head == "residual") != (self.loss == "squared"):
            raise UsageError(
                f"--head {self.head} with --loss {self.loss}", remedy="the residual head goes with the squared loss"
            )
        if self.head == "plain" and self.tolerance != "none":
            raise UsageError(
                f"--head plain with --tolerate {self.tolerance}", remedy="the plain head learns nothing of good parts"
            )


def default_head(model: str) -> Head:
    """The paper's plain sum for its own models."""
    return "residual" if family_of(model) == "edge" else "plain"


def default_loss(head: Head) -> LossReading:
    """The official code's reading; squared where features are whitened."""
    return "squared" if head == "residual" else "flattened"


def default_tolerance(head: Head) -> Tolerance:
    """What costs nothing on undisturbed parts (benchmarks/results, robustness)."""
    return "light+jig" if head == "residual" else "none"


def default_epochs(model: str) -> int:
    """How long a model is trained unless told otherwise."""
    return _DEFAULT_EPOCHS[family_of(model)]
