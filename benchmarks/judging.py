"""What finds the defects: the teacher, the student or the judging; and how much of it is knowing a part again.

Good test parts may be other pictures of parts that were trained on, while defective ones are not; then whatever knows
parts again looks like a good detector. So everything is measured twice: trained on all good parts, and without those
that have such a twin among the test parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdedge.contract import InputSpec
from rdedge_train.allocator import keep_freed_memory
from rdedge_train.anomaly_map import PositionHead
from rdedge_train.config import TrainConfig, default_loss, default_tolerance
from rdedge_train.data import GOOD, find_images, read_frames, read_part_mask
from rdedge_train.distributed import joined_world
from rdedge_train.features import TeacherFeatures, quick_teacher
from rdedge_train.fit import fit
from rdedge_train.metrics import au_pro, auroc
from rdedge_train.model import STRIDES, Detector, Head
from rdedge_train.residual_head import POOLED_SHARE, ResidualHead
from rdedge_train.run_folder import open_run
from rdedge_train.teachers import Teacher, load_teacher_weights
from results_file import write_results
from twins import TWIN_CORRELATION, coarse_features, highest_correlations

CPU = torch.device("cpu")
LevelMaps = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True, slots=True)
class TestParts:
    """Features of the labelled parts, and what is known of them."""

    features: TeacherFeatures
    masks: list[NDArray[np.bool_] | None]
    is_defective: NDArray[np.bool_]

    def figures(self, detector: Detector, level_maps: LevelMaps) -> tuple[float, float]:
        """Image AUROC and AU-PRO 0.3 of the maps summed from these level maps."""
        with torch.no_grad():
            answers = [detector.anomaly_map(level_maps(batch)) for batch in self.features.in_order()]
        maps = np.concatenate([m[:, 0].numpy() for m, _ in answers])
        scores = np.concatenate([s.numpy() for _, s in answers])
        masked = [(m, mask) for m, mask in zip(maps, self.masks, strict=True) if mask is not None]
        return auroc(scores, self.is_defective), au_pro([m for m, _ in masked], [mask for _, mask in masked])


def main() -> None:
    """Train on both sets of good parts, judge in every way, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="laid out like MVTec AD")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--heads", nargs="+", choices=["position", "residual"], default=["position", "residual"])
    args = parser.parse_args()
    keep_freed_memory()
    spec = InputSpec(size_hw=(256, 256), colour_order="rgb", resize="area+linear", roi_xywh=None)
    dataset = find_images(args.data)
    good = list(dataset.good_paths)
    test = [p.path for p in dataset.test_parts]
    is_defective = np.array([p.defect != GOOD for p in dataset.test_parts])
    teacher = imagenet_teacher()
    test_features = features_of(teacher, args.data, test, spec)
    parts = TestParts(test_features, [read_part_mask(p, spec) for p in dataset.test_parts], is_defective)
    good_coarse = coarse_features(features_of(teacher, args.data, good, spec).in_order())
    test_coarse = coarse_features(test_features.in_order())
    likeness = highest_correlations(test_coarse, good_coarse).double().numpy()
    good_test = test_coarse[torch.from_numpy(~is_defective)]
    has_twin = (highest_correlations(good_coarse, good_test) > TWIN_CORRELATION).numpy()
    without = [path for path, twin in zip(good, has_twin, strict=True) if not twin]
    text = (
        f"edge-lite0, {args.epochs} epochs, seeds {args.seeds}, image AUROC / AU-PRO 0.3, mean ± deviation. "
        f"Of {len(good)} good parts {int(has_twin.sum())} have a twin among the good test parts (correlation above "
        f"{TWIN_CORRELATION}).\n\nKnowing parts again, without looking for a defect (score: minus the highest "
        f"correlation with a picture trained on): image AUROC **{auroc(-likeness, is_defective):.4f}**.\n\n"
    )
    columns = {"all good parts": good, "without twins": without}
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for column, paths in columns.items():
        for seed in args.seeds:
            for row, pair in judged_in_every_way(args.data, paths, spec, args.heads, args.epochs, seed, parts):
                figures.setdefault(row, {}).setdefault(column, []).append(pair)
                print(column, seed, row, pair, flush=True)
    rows = [f"| judging | {' | '.join(columns)} |", "|---|---|---|"]
    for row, by_column in figures.items():
        cells = [cell(by_column[column]) for column in columns]
        rows.append(f"| {row} | {' | '.join(cells)} |")
    record: dict[str, object] = {"knowing again": auroc(-likeness, is_defective), "judging": figures}
    write_results(f"judging_{args.data.name}", text + "\n".join(rows), record, ("torch",))


def cell(pairs: list[tuple[float, float]]) -> str:
    """Mean and standard deviation over seeds of both figures."""
    means, deviations = np.mean(pairs, axis=0), np.std(pairs, axis=0)
    return " / ".join(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(means, deviations, strict=True))


def judged_in_every_way(
    data: Path, paths: list[Path], spec: InputSpec, heads: list[Head], epochs: int, seed: int, parts: TestParts
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Figures of each kind of student, and of the teacher alone, each judged in several ways."""
    for head in heads:
        detector, names = train(data, paths, spec, head, epochs, seed)
        features = features_of(detector.teacher, data, names, spec)
        if isinstance(detector.head, PositionHead):
            yield "student, plain sum of cosine distances", parts.figures(detector, detector.distances)
            yield "student, cosine distances standardised by position", parts.figures(detector, detector.level_maps)
            continue
        assert isinstance(detector.head, ResidualHead)
        yield f"`rdedge train` (tolerates {default_tolerance(head)})", parts.figures(detector, detector.level_maps)
        first = len(STRIDES) - len(detector.strides)
        for name, vectors in (
            ("teacher alone", lambda batch, d=detector: d.targets(batch)),
            ("student's residual", detector.residuals),
        ):
            for share in (0.0, POOLED_SHARE, 1.0):
                for which in (*range(len(detector.strides)), None):
                    levels = range(len(detector.strides)) if which is None else [which]
                    label = "+".join(str(STRIDES[first + i]) for i in levels)
                    maps = refitted(detector, features, vectors, share, list(levels))
                    yield f"{name}, stride {label}, pooled share {share}", parts.figures(detector, maps)


def refitted(
    detector: Detector, features: TeacherFeatures, vectors: LevelMaps, pooled_share: float, levels: list[int]
) -> LevelMaps:
    """Level maps of a residual head fitted on these vectors; the levels left out are zero."""
    assert isinstance(detector.head, ResidualHead)
    with torch.no_grad():
        detector.head.fit((vectors(batch) for batch in features.in_order()), pooled_share)

    def level_maps(batch: list[Tensor]) -> list[Tensor]:
        assert isinstance(detector.head, ResidualHead)
        return [m * float(i in levels) for i, m in enumerate(detector.head(vectors(batch)))]

    return level_maps


def train(
    data: Path, paths: list[Path], spec: InputSpec, head: Head, epochs: int, seed: int
) -> tuple[Detector, list[Path]]:
    """A detector trained on these good parts as `rdedge train` does it, and those it did not hold out."""
    config = TrainConfig(
        model="edge-lite0", input=spec, ocbe="mff+oce", loss=default_loss(head), head=head, epochs=epochs,
        batch_size=16, learning_rate=0.005, seed=seed, held_out_share=0.2, teacher_weights="imagenet",
        tolerance=default_tolerance(head),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, joined_world() as world:
        links = Path(folder) / "data" / "train" / "good"
        links.mkdir(parents=True)
        for path in paths:
            (links / path.name).symlink_to(path.resolve())
        fit(Path(folder) / "data", Path(folder) / "run", config, world)
        run = open_run(Path(folder) / "run")
        return run.detector.eval(), [data / "train" / "good" / Path(name).name for name in run.record.train_images]


def features_of(teacher: Teacher, data: Path, paths: list[Path], spec: InputSpec) -> TeacherFeatures:
    """Teacher features of these pictures."""
    teacher = quick_teacher(teacher, spec.size_hw, CPU)
    return TeacherFeatures(teacher, read_frames(data, paths, spec).frames_u8, CPU, budget_bytes=1 << 34)


def imagenet_teacher() -> Teacher:
    """The edge model's."""
    teacher = Teacher("edge-lite0")
    load_teacher_weights(teacher, "edge-lite0", "imagenet")
    return teacher


if __name__ == "__main__":
    main()
