"""The training loop: deterministic by seed, resumable after every epoch, on one process or many."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rdedge.errors import RunError, UsageError
from rdedge.text import printable
from rdedge.versions import library_versions
from rdedge_train.anomaly_map import PositionHead
from rdedge_train.config import TrainConfig
from rdedge_train.data import Frames, find_images, read_usable, split_good
from rdedge_train.distributed import World, summed, use_global_batch_norm
from rdedge_train.features import TeacherFeatures, memory_budget_bytes, quick_teacher
from rdedge_train.fold import quick
from rdedge_train.loss import LossReading, distillation_loss
from rdedge_train.model import SIZE_MULTIPLE_PX, Detector, family_of
from rdedge_train.residual_head import ResidualHead
from rdedge_train.run_folder import (
    HELD_OUT_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    EpochRecord,
    RunRecord,
    clear_leftovers,
    load_state,
    open_run,
    read_record,
    save_finished,
    save_state,
    write_record,
)
from rdedge_train.teachers import load_teacher_weights
from rdedge_train.tolerance import Tolerance, disturbed_copies

ADAM_BETAS = (0.5, 0.999)  # the official code's


def fit(data: Path, out: Path, config: TrainConfig, world: World, *, skip_bad: bool = False) -> list[EpochRecord]:
    """Train ``config`` on the good images of ``data`` into the run folder ``out``; resumes what is there.

    Returns the history. The same settings and images give the same bits on the same machine; another number of
    threads or processes rounds differently. Raises DatasetError, WeightsError, RunError, UsageError.
    """
    if config.batch_size < world.size:
        raise UsageError(
            f"batch size {config.batch_size} for {world.size} processes", remedy="use a larger --batch-size"
        )
    if world.is_first:
        _refuse_foreign(out)
    _seed_everything(config.seed)
    dataset = find_images(data)
    frames, bad = read_usable(data, dataset.good_paths, config.input, skip_bad=skip_bad)
    train_paths, held_out_paths = split_good(frames.paths, config.held_out_share, config.seed)
    _check_batches(len(train_paths), config)
    train, held_out = frames.only(train_paths), frames.only(held_out_paths)
    del frames
    detector = Detector(config.model, config.input.size_hw, ocbe=config.ocbe, head=config.head)
    teacher_name = load_teacher_weights(detector.teacher, config.model, config.teacher_weights)
    record = _record(config, teacher_name, data, train, held_out, [e.problem for e in bad])
    if world.is_first:
        for error in bad:
            print(f"skipped {printable(error.problem)}", file=sys.stderr)
        _start_or_check(out, record, held_out.frames_u8)
    if (out / WEIGHTS_FILE).exists():
        return open_run(out).history
    return _train(detector.to(world.device), train, held_out, out, config, world)


def _train(
    detector: Detector, train: Frames, held_out: Frames, out: Path, config: TrainConfig, world: World
) -> list[EpochRecord]:
    budget = memory_budget_bytes(world.local_size)
    teacher = quick_teacher(detector.teacher, train.frames_u8.shape[1:3], world.device)
    features = TeacherFeatures(teacher, train.frames_u8, world.device, budget_bytes=budget)
    held_out_features = TeacherFeatures(teacher, held_out.frames_u8, world.device, budget_bytes=budget // 4)
    fit_whitening(detector, features)
    restorer: nn.Module = detector.restorer
    optimiser = torch.optim.Adam(restorer.parameters(), lr=config.learning_rate, betas=ADAM_BETAS)
    history = load_state(out, restorer, optimiser)
    if world.size > 1:
        use_global_batch_norm(restorer)
        restorer = DistributedDataParallel(restorer, broadcast_buffers=False)
    steps = math.ceil(len(features) / config.batch_size)
    is_quiet = not world.is_first or not sys.stderr.isatty()
    with tqdm(total=config.epochs * steps, initial=len(history) * steps, disable=is_quiet, unit="step") as bar:
        for epoch in range(len(history) + 1, config.epochs + 1):
            detector.restorer.train()
            total = 0.0
            for step, indices in enumerate(batches(len(features), config.batch_size, config.seed, epoch)):
                set_learning_rate(optimiser, config, (epoch - 1) * steps + step, config.epochs * steps)
                total += _step(detector, restorer, optimiser, features, indices, config, world) * len(indices)
                bar.update()
            loss = total / len(features)
            held_out_mean = held_out_loss(detector, held_out_features, config.loss)
            if not (math.isfinite(loss) and math.isfinite(held_out_mean)):
                raise RunError(
                    f"the loss became {loss} and the held-out loss {held_out_mean} in epoch {epoch}",
                    remedy="train into a new folder with a lower --learning-rate",
                )
            history.append(EpochRecord(epoch=epoch, loss=loss, held_out_loss=held_out_mean))
            if world.is_first:
                save_state(out, detector.restorer, optimiser, history)
                bar.set_postfix(epoch=f"{epoch}/{config.epochs}", loss=f"{loss:.4f}", held_out=f"{held_out_mean:.4f}")
                if is_quiet:
                    print(
                        f"epoch {epoch}/{config.epochs}  loss {loss:.4f}  held-out loss {held_out_mean:.4f}",
                        file=sys.stderr,
                    )
    if world.is_first:
        fit_head(detector, features, config.tolerance, config.seed)
        save_finished(out, detector, history)
    return history


def _step(
    detector: Detector,
    restorer: nn.Module,
    optimiser: torch.optim.Optimizer,
    features: TeacherFeatures,
    indices: NDArray[np.int64],
    config: TrainConfig,
    world: World,
) -> float:
    """One optimiser step on this process's share of a batch; returns the mean loss over the whole batch.

    ``restorer``: the detector's own, wrapped where several processes train.
    """
    teacher = features.batch(indices[world.rank :: world.size])
    losses: Tensor = distillation_loss(detector.targets(teacher), restorer(teacher), config.loss)
    # DDP averages gradients over processes, whose shares may differ by one: weigh each by what it holds.
    loss = losses.sum() * (world.size / len(indices))
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    return summed(float(losses.detach().sum()), world) / len(indices)


def batches(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """The epoch's batches: a permutation drawn from (seed, epoch) alone, cut into nearly equal parts.

    Nearly equal instead of a short last batch, whose batch-norm statistics would be poor.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)
    yield from np.array_split(order, math.ceil(n / batch_size))


def set_learning_rate(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> None:
    """Constant for the paper's models, as in the official code; for the edge family a cosine to zero."""
    rate = config.learning_rate
    if family_of(config.model) == "edge":
        rate *= 0.5 * (1.0 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


@torch.no_grad()
def fit_whitening(detector: Detector, features: TeacherFeatures) -> None:
    """What the student will have to restore is scaled by the teacher's features of all training parts."""
    if isinstance(detector.head, ResidualHead):
        detector.head.fit_whitening(detector.levels(batch) for batch in features.in_order())


@torch.no_grad()
def fit_head(detector: Detector, features: TeacherFeatures, tolerance: Tolerance, seed: int) -> None:
    """What is normal at each position, from all training parts and what is tolerated, once the student is trained."""
    if detector.head is None:
        return
    shown = features.in_order()
    if tolerance != "none":
        disturb = partial(disturbed_copies, tolerance=tolerance, seed=seed)
        shown = chain(shown, features.disturbed_in_order(disturb))
    trained = quick(detector, features.size_hw, features.device)
    if isinstance(detector.head, PositionHead):
        chunks = [trained.distances(batch) for batch in shown]
        detector.head.fit([torch.cat(level) for level in zip(*chunks, strict=True)])
    else:
        detector.head.fit(trained.residuals(batch) for batch in shown)


@torch.no_grad()
def held_out_loss(detector: Detector, features: TeacherFeatures, reading: LossReading) -> float:
    """Mean loss of held-out good parts: it rises when the student begins to learn its training parts by heart."""
    detector.eval()
    losses = [
        distillation_loss(detector.targets(batch), detector.restorer(batch), reading) for batch in features.in_order()
    ]
    return float(torch.cat(losses).mean())


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads what it has not written; filling each new tensor first costs a third of a teacher pass.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _record(
    config: TrainConfig, teacher: str, data: Path, train: Frames, held_out: Frames, skipped: list[str]
) -> RunRecord:
    def names(frames: Frames) -> list[str]:
        return [printable(p.relative_to(data).as_posix()) for p in frames.paths]

    return RunRecord(
        config=config,
        teacher=teacher,
        data=printable(str(data.absolute())),
        train_images=names(train),
        train_sha256=train.sha256,
        held_out_images=names(held_out),
        held_out_sha256=held_out.sha256,
        skipped_images=[printable(problem) for problem in skipped],
        versions=library_versions("torch", "torchvision"),
    )


def _check_batches(n_train: int, config: TrainConfig) -> None:
    """Batch norm needs two values a channel to tell a deviation, also at the embedding's stride. Raises UsageError."""
    smallest = n_train // math.ceil(n_train / config.batch_size)
    height, width = config.input.size_hw
    if smallest * (height // SIZE_MULTIPLE_PX) * (width // SIZE_MULTIPLE_PX) < 2:
        raise UsageError(
            f"batches of one image of {height}x{width} give batch norm a single value",
            remedy="use a larger --image-size or --batch-size, or more images",
        )


def _refuse_foreign(out: Path) -> None:
    """Nothing is written into a folder with other things in it. Raises RunError."""
    if (out / RUN_FILE).exists() or not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir():
        raise RunError(f"{out}: is not a folder", remedy="name a new folder")
    if any(not p.name.startswith(".") and p.name != HELD_OUT_FILE for p in out.iterdir()):
        raise RunError(f"{out}: is not empty and not a run", remedy="name a new folder")


def _start_or_check(out: Path, record: RunRecord, held_out_u8: NDArray[np.uint8]) -> None:
    """Begin a run, or make sure that the one there is the same. Raises RunError."""
    clear_leftovers(out)
    if not (out / RUN_FILE).exists():
        out.mkdir(parents=True, exist_ok=True)
        write_record(out, record, held_out_u8)
        return
    there = read_record(out)
    for field in ("config", "teacher", "train_sha256", "held_out_sha256"):
        old, new = getattr(there, field), getattr(record, field)
        if old == new:
            continue
        if field == "config":
            names = [f for f in msgspec.structs.asdict(old) if getattr(old, f) != getattr(new, f)]
            field, old, new = names[0], getattr(old, names[0]), getattr(new, names[0])
        raise RunError(
            f"{out}: was started with {field} {old}, now asked for {new}",
            remedy="repeat the first command to resume, or name a new folder",
        )
