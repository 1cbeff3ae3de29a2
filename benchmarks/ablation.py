"""Reverse distillation taken apart, and set against conventional distillation and simpler baselines on one teacher.

Rows as in the paper's ablation and related work (Deng and Li, CVPR 2022), mean and spread over seeds, which also draw
what is held out: `--data` on a folder laid out like MVTec AD, `--digits` for one-class novelty on scikit-learn's digits
(each digit in turn is the good part). Results are written after every figure, so that a run cut short counts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from baselines import (
    Baseline,
    Judgement,
    Pictures,
    auto_encoder,
    conventional_distillation,
    joined,
    nearest_neighbour,
    one_class_svm,
    pictures,
)
from rdedge.contract import InputSpec
from rdedge_train.allocator import keep_freed_memory
from rdedge_train.config import TrainConfig, default_loss
from rdedge_train.data import GOOD, find_images, read_frames, read_part_mask, split_good
from rdedge_train.distributed import joined_world
from rdedge_train.fit import fit
from rdedge_train.metrics import au_pro, auroc
from rdedge_train.model import Head
from rdedge_train.paper import Ocbe
from rdedge_train.run_folder import open_run
from rdedge_train.teachers import Teacher, load_teacher_weights
from results_file import write_results

MODEL = "edge-lite0"
DIGITS_SIZE_PX = 64
REVERSE: dict[str, tuple[Ocbe, Head]] = {
    "reverse distillation, OCBE none": ("none", "plain"),
    "reverse distillation, OCBE oce": ("oce", "plain"),
    "reverse distillation, OCBE mff+oce": ("mff+oce", "plain"),
    "reverse distillation, OCBE mff+oce, residual head": ("mff+oce", "residual"),
}
BASELINES: dict[str, Baseline] = {
    "nearest neighbour, stride 16": nearest_neighbour,
    "one-class SVM on pooled features": one_class_svm,
    "auto-encoder on pixels": auto_encoder,
    "conventional distillation": conventional_distillation,
}
ROWS = (*REVERSE, *BASELINES)
DIGITS_ROWS = ROWS[2:]  # without the ablation's lesser bottlenecks
DIGITS_TEXT = (
    f"scikit-learn's digits (8x8, enlarged to {DIGITS_SIZE_PX}x{DIGITS_SIZE_PX}): each digit in turn is the good part; "
    "half of all pictures, drawn by seed, are test pictures. Image AUROC is the mean over the ten digits; there are no "
    "masks, so no AU-PRO."
)
Pair = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Task:
    """Good parts to train on, in order of name, and labelled parts to judge; no masks where places do not matter."""

    good: tuple[Path, ...]
    size_hw: tuple[int, int]
    test: Pictures
    is_defective: NDArray[np.bool_]
    masks: Sequence[NDArray[np.bool_] | None] | None

    def figures(self, judgement: Judgement) -> Pair:
        """Image AUROC, and AU-PRO 0.3 where there are masks and maps."""
        image = auroc(judgement.scores, self.is_defective)
        if self.masks is None or judgement.maps is None:
            return image, None
        masked = [(m, mask) for m, mask in zip(judgement.maps, self.masks, strict=True) if mask is not None]
        return image, au_pro([m for m, _ in masked], [mask for _, mask in masked])


def main() -> None:
    """Measure row by row and seed by seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="laid out like MVTec AD")
    what.add_argument("--digits", action="store_true", help="scikit-learn's digits, each in turn the good part")
    parser.add_argument("--epochs", type=int, default=20, help="of everything that is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-limit", type=int, help="this many good parts only, evenly over their names")
    parser.add_argument("--image-size", type=int, default=256, help="pixels, a multiple of 32; digits are always 64")
    args = parser.parse_args()
    keep_freed_memory()
    teacher = imagenet_teacher()
    with tempfile.TemporaryDirectory() as folder:
        if args.digits:
            theme, rows, text = "ablation_digits", DIGITS_ROWS, DIGITS_TEXT
            measured = digits_figures(Path(folder), teacher, args.epochs, args.seeds)
        else:
            task = folder_task(args.data, args.image_size, args.train_limit, teacher)
            theme, rows, text = f"ablation_{args.data.name}", ROWS, folder_text(task)
            measured = (answer for seed in args.seeds for answer in each_row(task, ROWS, teacher, args.epochs, seed))
        text = f"{MODEL}, {args.epochs} epochs, seeds {args.seeds}; {text}"
        figures: dict[str, list[Pair]] = {row: [] for row in rows}
        for row, pair in measured:
            figures[row].append(pair)
            whole = f"{text}\n\n{table(figures, len(args.seeds))}"
            write_results(theme, whole, {"image AUROC, AU-PRO": figures}, ("torch", "scikit-learn"))


def folder_text(task: Task) -> str:
    """What the figures of a folder were measured on."""
    defective = int(task.is_defective.sum())
    return (
        f"{task.size_hw[0]}x{task.size_hw[1]} pixels; {len(task.good)} good parts, a fifth of them held out by seed, "
        f"{len(task.is_defective) - defective} good and {defective} defective test parts."
    )


def table(figures: dict[str, list[Pair]], seeds: int) -> str:
    """Mean and standard deviation over seeds; what was not measured stays blank, and it is said why."""
    lines = ["| method | image AUROC | AU-PRO 0.3 | seeds |", "|---|---|---|---|"]
    for row, pairs in figures.items():
        places = [place for _, place in pairs if place is not None]
        lines.append(f"| {row} | {spread([image for image, _ in pairs])} | {spread(places)} | {len(pairs)} |")
    notes = ["Mean ± standard deviation over seeds (n - 1). The one-class SVM judges whole pictures: no AU-PRO."]
    if any(len(pairs) < seeds for pairs in figures.values()):
        notes.append(f"Rows with fewer than {seeds} seeds: the run was stopped before they were measured.")
    return "\n".join([*lines, "", *notes])


def spread(values: list[float]) -> str:
    """``mean ± deviation``; the value alone where there is one; nothing where there is none."""
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def each_row(task: Task, rows: Sequence[str], teacher: Teacher, epochs: int, seed: int) -> Iterator[tuple[str, Pair]]:
    """Train each row's method on the same parts, those the seed does not hold out, and judge the test parts."""
    train_paths, _ = split_good(task.good, held_out_share=0.2, seed=seed)
    train = pictures(teacher, read_frames(train_paths[0].parent, train_paths, input_spec(task.size_hw)).frames_u8)
    for row in rows:
        if row in REVERSE:
            ocbe, head = REVERSE[row]
            judgement = reverse_distillation(task, train_config(task.size_hw, ocbe, head, epochs, seed))
        else:
            config = train_config(task.size_hw, "mff+oce", "plain", epochs, seed)
            judgement = BASELINES[row](train, task.test, config)
        yield row, task.figures(judgement)


def reverse_distillation(task: Task, config: TrainConfig) -> Judgement:
    """What `rdedge train` makes of the good parts; it holds out by the same rule."""
    with tempfile.TemporaryDirectory() as folder, joined_world() as world:
        links = Path(folder) / "data" / "train" / "good"
        links.mkdir(parents=True)
        for i, path in enumerate(task.good):
            (links / f"{i:06d}{path.suffix}").symlink_to(path.resolve())
        fit(Path(folder) / "data", Path(folder) / "run", config, world)
        detector = open_run(Path(folder) / "run").detector.eval()
    return joined(detector.judge_features(batch) for batch in task.test.features.in_order())


def train_config(size_hw: tuple[int, int], ocbe: Ocbe, head: Head, epochs: int, seed: int) -> TrainConfig:
    """`rdedge train`'s defaults but for what is compared."""
    return TrainConfig(
        model=MODEL, input=input_spec(size_hw), ocbe=ocbe, loss=default_loss(head), head=head, epochs=epochs,
        batch_size=16, learning_rate=0.005, seed=seed, held_out_share=0.2, teacher_weights="imagenet",
    )  # fmt: skip


def input_spec(size_hw: tuple[int, int]) -> InputSpec:
    """Whole pictures at this size."""
    return InputSpec(size_hw=size_hw, colour_order="rgb", resize="area+linear", roi_xywh=None)


def imagenet_teacher() -> Teacher:
    """The edge model's, with the stage that OCBE ``none`` embeds."""
    teacher = Teacher(MODEL, with_last_stage=True)
    load_teacher_weights(teacher, MODEL, "imagenet")
    return teacher


def folder_task(data: Path, image_size_px: int, train_limit: int | None, teacher: Teacher) -> Task:
    """A data folder's good and test parts. Raises DatasetError, ImageError."""
    size_hw = (image_size_px, image_size_px)
    spec = input_spec(size_hw)
    dataset = find_images(data)
    kept = np.linspace(0, len(dataset.good_paths) - 1, min(train_limit or 10**9, len(dataset.good_paths))).astype(int)
    frames_u8 = read_frames(data, [part.path for part in dataset.test_parts], spec).frames_u8
    return Task(
        good=tuple(dataset.good_paths[i] for i in kept),
        size_hw=size_hw,
        test=pictures(teacher, frames_u8),
        is_defective=np.array([part.defect != GOOD for part in dataset.test_parts]),
        masks=[read_part_mask(part, spec) for part in dataset.test_parts],
    )


def digits_figures(folder: Path, teacher: Teacher, epochs: int, seeds: Sequence[int]) -> Iterator[tuple[str, Pair]]:
    """For each seed and row the mean AUROC over the ten digits."""
    frames_u8, labels = digits()
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        train, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        judged = pictures(teacher, frames_u8[test])
        by_row: dict[str, list[float]] = {row: [] for row in DIGITS_ROWS}
        for digit in range(10):
            good = folder / f"seed{seed}" / str(digit)
            good.mkdir(parents=True)
            for i in train[labels[train] == digit]:
                cv2.imwrite(str(good / f"{i:06d}.png"), frames_u8[i])
            size_hw = (DIGITS_SIZE_PX, DIGITS_SIZE_PX)
            task = Task(tuple(sorted(good.iterdir())), size_hw, judged, labels[test] != digit, None)
            for row, (image, _) in each_row(task, DIGITS_ROWS, teacher, epochs, seed):
                by_row[row].append(image)
        yield from ((row, (float(np.mean(images)), None)) for row, images in by_row.items())


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Grey digits enlarged to uint8 (n, DIGITS_SIZE_PX, DIGITS_SIZE_PX, 3), and which they are (n,)."""
    small, labels = load_digits(return_X_y=True)  # (n, 64), 0..16
    side = (DIGITS_SIZE_PX, DIGITS_SIZE_PX)
    large = [cv2.resize(row.reshape(8, 8) * (255 / 16), side, interpolation=cv2.INTER_LINEAR) for row in small]
    grey_u8 = np.stack(large).round().astype(np.uint8)
    return np.repeat(grey_u8[..., None], 3, axis=-1), labels.astype(np.int64)


if __name__ == "__main__":
    main()
