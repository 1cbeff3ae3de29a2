"""Reads and writes checkpoints in the layout of the official RD4AD code: {"bn": ..., "decoder": ...}."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rdedge.errors import WeightsError
from rdedge_train.model import Restorer
from rdedge_train.paper import RESNETS

_REMEDY = "pass a checkpoint saved by the official RD4AD code for the model named"


def load_official(restorer: Restorer, path: Path) -> None:
    """Fill bottleneck and student from an official checkpoint, read with torch's tensor-only loader.

    ``conv4``/``bn4`` (declared but never run by the official code) and keys containing "memory" are ignored, as the
    official test script does. Raises WeightsError.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # the loader raises many unrelated types on a damaged or foreign file
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise WeightsError(f"{path}: not a readable checkpoint ({reason})", remedy=_REMEDY) from exc
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(p), dict) for p in ("bn", "decoder")):
        raise WeightsError(f"{path}: expected the keys bn and decoder", remedy=_REMEDY)
    bottleneck = {
        key: value
        for key, value in checkpoint["bn"].items()
        if not key.startswith(("conv4.", "bn4.")) and "memory" not in key
    }
    decoder = checkpoint["decoder"]
    _check(restorer.bottleneck, bottleneck, f"{path}: bn")
    _check(restorer.student, decoder, f"{path}: decoder")
    restorer.bottleneck.load_state_dict(bottleneck)
    restorer.student.load_state_dict(decoder)


def _check(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Everything is checked before anything is filled."""
    wanted = module.state_dict()
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state:
            raise WeightsError(f"{where} lacks {key}", remedy=_REMEDY)
        if key not in wanted:
            raise WeightsError(f"{where} has {key}, which the model has not", remedy=_REMEDY)
        if state[key].shape != wanted[key].shape:
            got, expected = tuple(state[key].shape), tuple(wanted[key].shape)
            raise WeightsError(f"{where} has {key} of shape {got}, expected {expected}", remedy=_REMEDY)
        if not torch.isfinite(state[key].float()).all():
            raise WeightsError(f"{where} has NaN or infinity in {key}", remedy=_REMEDY)


def official_state(restorer: Restorer, model: str) -> dict[str, dict[str, Tensor]]:
    """The checkpoint the official code loads strictly; its never-run ``conv4``/``bn4`` are filled neutrally.

    Raises ValueError for an ablation, which the official code has no layout for.
    """
    if not hasattr(restorer.bottleneck, "conv1"):
        raise ValueError("only the full bottleneck (mff+oce) has an official layout")
    expansion = RESNETS[model].expansion
    channels = 512 * expansion
    unused = {
        "conv4.weight": torch.zeros(channels, 1024 * expansion, 1, 1),
        "bn4.weight": torch.ones(channels),
        "bn4.bias": torch.zeros(channels),
        "bn4.running_mean": torch.zeros(channels),
        "bn4.running_var": torch.ones(channels),
        "bn4.num_batches_tracked": torch.tensor(0),
    }
    return {
        "bn": dict(restorer.bottleneck.state_dict()) | unused,
        "decoder": dict(restorer.student.state_dict()),
    }
