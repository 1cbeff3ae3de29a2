"""A training run on disk: record, resumable state, finished weights; every file appears whole or not at all.

run.json                 settings, split, data hashes (written before the first epoch)
held_out.npy             the held-out good parts, preprocessed (uint8 n, H, W, 3)
state.safetensors        weights, optimiser and history after the last finished epoch (removed when done)
weights.safetensors      teacher, bottleneck and student of the finished run, with its history
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rdedge.atomic import clear_abandoned, write_bytes
from rdedge.errors import RunError, UsageError
from rdedge_train.config import TrainConfig
from rdedge_train.model import Detector
from rdedge_train.teachers import state_sha256

RUN_FILE, HELD_OUT_FILE = "run.json", "held_out.npy"
STATE_FILE, WEIGHTS_FILE = "state.safetensors", "weights.safetensors"
_TRAIN_AGAIN = "train again with `rdedge train` into a new folder"


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run was made from."""

    config: TrainConfig
    teacher: str  # source and sha256 of the teacher's weights
    data: str  # the folder, absolute: an export calibrates on its images from wherever it is called
    train_images: list[str]  # relative to the folder
    train_sha256: str
    held_out_images: list[str]
    held_out_sha256: str
    skipped_images: list[str]
    versions: dict[str, str]


class EpochRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One finished epoch: mean loss of training and of held-out good parts."""

    epoch: Annotated[int, Meta(ge=1)]
    loss: float
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run ready to be evaluated or exported."""

    folder: Path
    record: RunRecord
    history: list[EpochRecord]
    detector: Detector
    weights_sha256: str

    def held_out_frames(self) -> NDArray[np.uint8]:
        """Held-out good parts, uint8 (n, H, W, 3). Raises RunError."""
        return read_held_out(self.folder, self.record)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left: half-written files, and the state of a run that was finished."""
    for name in (RUN_FILE, HELD_OUT_FILE, STATE_FILE, WEIGHTS_FILE):
        clear_abandoned(folder / name)
    if (folder / WEIGHTS_FILE).exists():
        (folder / STATE_FILE).unlink(missing_ok=True)


def write_record(folder: Path, record: RunRecord, held_out_u8: NDArray[np.uint8]) -> None:
    """Start a run: held-out frames first, then the record, which makes it a run."""
    buffer = io.BytesIO()
    np.save(buffer, held_out_u8, allow_pickle=False)
    write_bytes(folder / HELD_OUT_FILE, buffer.getvalue())
    write_bytes(folder / RUN_FILE, msgspec.json.format(msgspec.json.encode(record), indent=1))


def read_record(folder: Path) -> RunRecord:
    """Raises RunError."""
    path = folder / RUN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except OSError as exc:
        raise RunError(
            f"{path}: cannot be read ({exc.strerror})", remedy="name a folder that `rdedge train --out` made"
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RunError(f"{path}: {exc}", remedy=_TRAIN_AGAIN) from exc
    except UsageError as exc:  # settings that this version does not know
        raise RunError(f"{path}: {exc.problem}", remedy=_TRAIN_AGAIN) from exc


def read_held_out(folder: Path, record: RunRecord) -> NDArray[np.uint8]:
    """Raises RunError."""
    path = folder / HELD_OUT_FILE
    try:
        with path.open("rb") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that other versions of numpy wrote
            frames: NDArray[np.uint8] = np.lib.format.read_array(f, allow_pickle=False)
    except Exception as exc:  # numpy raises many unrelated types on a damaged file
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise RunError(f"{path}: cannot be read ({reason})", remedy=_TRAIN_AGAIN) from exc
    expected = (len(record.held_out_images), *record.config.input.size_hw, 3)
    if frames.dtype != np.uint8 or frames.shape != expected:
        raise RunError(f"{path}: expected uint8 {expected}, got {frames.dtype} {frames.shape}", remedy=_TRAIN_AGAIN)
    return frames


def save_state(folder: Path, restorer: nn.Module, optimiser: torch.optim.Optimizer, history: list[EpochRecord]) -> None:
    """Everything the next epoch needs, in one file."""
    tensors = {f"restorer.{k}": v for k, v in restorer.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    write_bytes(folder / STATE_FILE, _safetensors_bytes(tensors, history))


def load_state(folder: Path, restorer: nn.Module, optimiser: torch.optim.Optimizer) -> list[EpochRecord]:
    """Continue after the last finished epoch; an empty list where none is. Raises RunError."""
    path = folder / STATE_FILE
    if not path.exists():
        return []
    tensors, history = _read_safetensors(path)
    states = _adam_states(tensors, optimiser, path)
    _load(restorer, {k.removeprefix("restorer."): v for k, v in tensors.items() if k.startswith("restorer.")}, path)
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return history


def save_finished(folder: Path, detector: Detector, history: list[EpochRecord]) -> None:
    """The finished weights; then the resumable state is no longer needed."""
    write_bytes(folder / WEIGHTS_FILE, _safetensors_bytes(detector.state_dict(), history))
    (folder / STATE_FILE).unlink(missing_ok=True)


def open_run(folder: Path) -> FinishedRun:
    """Read a finished run. Raises RunError on missing, damaged, foreign or NaN weights, or an unfinished run."""
    record = read_record(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise RunError(
            f"{folder}: training is not finished ({WEIGHTS_FILE} is missing)",
            remedy="run the same `rdedge train` command again; it resumes",
        )
    tensors, history = _read_safetensors(path)
    config = record.config
    detector = Detector(config.model, config.input.size_hw, ocbe=config.ocbe, head=config.head)
    _load(detector, tensors, path)
    return FinishedRun(folder, record, history, detector.eval(), state_sha256(tensors))


def _safetensors_bytes(tensors: dict[str, Tensor], history: list[EpochRecord]) -> bytes:
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return save(plain, {"history": msgspec.json.encode(history).decode()})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], list[EpochRecord]]:
    try:
        with safe_open(path, framework="pt") as f:
            history = msgspec.json.decode((f.metadata() or {})["history"], type=list[EpochRecord])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, SafetensorError, KeyError, msgspec.DecodeError, json.JSONDecodeError) as exc:
        raise RunError(f"{path}: damaged or not ours ({type(exc).__name__}: {exc})", remedy=_TRAIN_AGAIN) from exc
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(f"{path}: {key} holds NaN or infinity", remedy=_TRAIN_AGAIN)
    return tensors, history


def _adam_states(
    tensors: dict[str, Tensor], optimiser: torch.optim.Optimizer, path: Path
) -> dict[int, dict[str, Tensor]]:
    """Adam's state of every parameter; a gap would start it anew in silence."""
    states = {}
    for index, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
        shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        state = {name: tensors[key] for name in shapes if (key := f"optimiser.{index}.{name}") in tensors}
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise RunError(f"{path}: does not fit the run's optimiser (parameter {index})", remedy=_TRAIN_AGAIN)
        states[index] = state
    return states


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise RunError(f"{path}: does not fit the run's model ({reason})", remedy=_TRAIN_AGAIN) from exc
