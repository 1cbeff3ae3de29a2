"""Reads and writes checkpoints in the layout of the official RD4AD code: {"bn": ..., "decoder": ...}."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from rdedge.errors import WeightsError
from rdedge_train.checkpoint_file import REMEDY, read_checkpoint
from rdedge_train.model import Restorer
from rdedge_train.paper import RESNETS


def load_official(restorer: Restorer, path: Path) -> None:
    """Fill bottleneck and student from an official checkpoint; nothing in the file is run. Raises WeightsError."""
    fill_official(restorer, read_checkpoint(path), path)


def is_official(checkpoint: object) -> TypeGuard[dict[str, dict[str, Tensor]]]:
    """Whether what was read has the official layout."""
    return isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(part), dict) for part in ("bn", "decoder"))


def fill_official(restorer: Restorer, checkpoint: object, path: Path) -> None:
    """The same from what was read of ``path``; everything is checked before anything is filled. Raises WeightsError."""
    if not is_official(checkpoint):
        raise WeightsError(f"{path}: expected the keys bn and decoder", remedy=REMEDY)
    bottleneck, decoder = without_unused(checkpoint["bn"]), checkpoint["decoder"]
    check_state(restorer.bottleneck, bottleneck, f"{path}: bn")
    check_state(restorer.student, decoder, f"{path}: decoder")
    restorer.bottleneck.load_state_dict(bottleneck)
    restorer.student.load_state_dict(decoder)


def without_unused(bottleneck: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without ``conv4``/``bn4``, declared but never run, and "memory" keys, which the official test script drops."""
    return {
        key: value
        for key, value in bottleneck.items()
        if not str(key).startswith(("conv4.", "bn4.")) and "memory" not in str(key)
    }


def check_state(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """A state dict fits a module: the same names and shapes, every number finite. Raises WeightsError."""
    wanted = module.state_dict()
    strangers = [key for key in state if not isinstance(key, str)]
    for key in strangers or sorted(wanted.keys() | state.keys()):
        if key not in state:
            raise WeightsError(f"{where} lacks {key}", remedy=REMEDY)
        if key not in wanted:
            raise WeightsError(f"{where} has {key}, which the model has not", remedy=REMEDY)
        if not isinstance(state[key], Tensor):
            raise WeightsError(f"{where} has {key}, which is no tensor", remedy=REMEDY)
        if state[key].shape != wanted[key].shape:
            got, expected = tuple(state[key].shape), tuple(wanted[key].shape)
            raise WeightsError(f"{where} has {key} of shape {got}, expected {expected}", remedy=REMEDY)
        if not torch.isfinite(state[key].float()).all():
            raise WeightsError(f"{where} has NaN or infinity in {key}", remedy=REMEDY)


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
