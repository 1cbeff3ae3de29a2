"""Evaluation: every figure equals a direct computation, and what cannot be computed is said, not guessed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score

from rdedge.cli import main
from rdedge.contract import InputSpec
from rdedge.errors import BackendError, DatasetError, ImageError, UsageError
from rdedge.good_parts import Threshold
from rdedge_train.evaluate import Evaluation, evaluate, parts_to_show
from rdedge_train.evaluate_verb import format_table, write_evaluation_report
from rdedge_train.subject import Subject, open_subject

Copied = Callable[[Path], Path]
Refused = Callable[..., str]
DiskOf = Callable[[int], AbstractContextManager[None]]

SIZE_HW = (32, 48)
LIMIT = Threshold(
    value=0.5,
    rule="quantile",
    target_rate=0.01,
    expected_rate=0.05,
    rate_low=0.0,
    rate_high=0.176,
    confidence=0.95,
    parts=19,
)


def darkness(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A detector whose answers can be written down: the darker, the more anomalous."""
    maps = np.float32(1.0) - frames_u8.mean(axis=3, dtype=np.float32) / np.float32(255.0)
    return maps, maps.max(axis=(1, 2))


def subject(predict: Callable[..., object] = darkness) -> Subject:
    spec = InputSpec(size_hw=SIZE_HW, colour_order="rgb", resize="area+linear", roi_xywh=None)
    return Subject(name="darkness", input=spec, image_threshold=LIMIT, predict=predict, facts={})  # type: ignore[arg-type]


def write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def part(seed: int, spots: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Noise of 140 to 239 grey levels with 6 x 6 spots at (x, y) of a grey level."""
    image = np.random.default_rng(seed).integers(140, 240, (*SIZE_HW, 1), np.uint8).repeat(3, axis=2)
    for x, y, level in spots:
        image[y : y + 6, x : x + 6] = level
    return image


def mask(spots: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    image = np.zeros(SIZE_HW, np.uint8)
    for x, y, _ in spots:
        image[y : y + 6, x : x + 6] = 255
    return image


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Good parts (one too dark), dents (one too faint, one unmarked), stains (one with an empty mask)."""
    root = tmp_path / "labelled"
    write(root / "train/good/000.png", part(0, []))
    for i, spots in enumerate([[], [], [(5, 5, 60)], []]):
        write(root / f"test/good/{i:03d}.png", part(10 + i, spots))
    dents = [[(2, 2, 30)], [(20, 9, 135)], [(30, 20, 10), (8, 8, 100)], [(1, 1, 0)]]
    for i, spots in enumerate(dents):
        write(root / f"test/dent/{i:03d}.png", part(20 + i, spots))
        if i < 3:
            write(root / f"ground_truth/dent/{i:03d}_mask.png", mask(spots))
    for i, spots in enumerate([[(12, 3, 50)], [(40, 25, 90)]]):
        write(root / f"test/stain/{i:03d}.png", part(30 + i, spots))
        write(root / f"ground_truth/stain/{i:03d}_mask.png", mask(spots if i == 0 else []))
    return root


def pro_curve_area(maps: list[NDArray[np.float32]], masks: list[NDArray[np.bool_]], limit: float = 0.3) -> float:
    """AU-PRO by its definition: a point for every threshold, joined by lines, cut at the limit."""
    regions = []
    for index, one_mask in enumerate(masks):
        count, labels = cv2.connectedComponents(one_mask.astype(np.uint8), connectivity=8)
        regions += [(index, labels == label) for label in range(1, count)]
    free = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        overlap = np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])
        points.append((float((free >= threshold).mean()), float(overlap)))
    rates, overlaps = np.array(points).T
    inside = rates <= limit
    rates_cut = np.append(rates[inside], limit)
    overlaps_cut = np.append(overlaps[inside], np.interp(limit, rates, overlaps))
    return float(np.trapezoid(overlaps_cut, rates_cut) / limit)


def test_every_figure_equals_its_direct_computation(labelled: Path) -> None:
    evaluation, judged = evaluate(subject(), labelled)
    names = [p.path.relative_to(labelled / "test").as_posix() for p in judged.parts]
    truth = {"dent": [0, 1, 2, 3], "good": [0, 1, 2, 3], "stain": [0, 1]}
    assert names == [f"{kind}/{i:03d}.png" for kind, numbers in truth.items() for i in numbers]
    maps, scores = darkness(np.stack([cv2.imread(str(p.path)) for p in judged.parts]))
    assert np.array_equal(judged.maps, maps) and np.array_equal(judged.scores, scores)
    kinds = np.array([name.split("/")[0] for name in names])
    with_pixels = {"dent/000.png", "dent/001.png", "dent/002.png", "stain/000.png"}
    rows = {row.defect: row for row in (*evaluation.by_defect, evaluation.overall)}
    assert list(rows) == ["dent", "stain", "all"]
    for kind, row in rows.items():
        defective = kinds != "good" if kind == "all" else kinds == kind
        chosen = defective | (kinds == "good")
        assert row.parts == defective.sum()
        assert row.image_auroc == pytest.approx(roc_auc_score(defective[chosen], scores[chosen]), abs=1e-12)
        assert row.f1 == pytest.approx(f1_score(defective[chosen], scores[chosen] > 0.5), abs=1e-12)
        assert row.miss_rate == np.mean(scores[defective] <= 0.5)
        used = [i for i, name in enumerate(names) if chosen[i] and (name in with_pixels or kinds[i] == "good")]
        assert row.parts_with_mask == len([i for i in used if defective[i]])
        masks = [
            cv2.imread(str(p), 0) > 127
            if (p := next(iter(judged.parts[i].mask_paths), None))
            else np.zeros(SIZE_HW, bool)
            for i in used
        ]
        pixels, labels = np.concatenate([maps[i].ravel() for i in used]), np.concatenate([m.ravel() for m in masks])
        assert row.pixel_auroc == pytest.approx(roc_auc_score(labels, pixels), abs=1e-12)
        assert row.au_pro == pytest.approx(pro_curve_area([maps[i] for i in used], masks), abs=1e-9)
    assert (evaluation.good_parts, evaluation.defective_parts, evaluation.empty_masks) == (4, 6, 1)
    assert evaluation.false_reject_rate == 0.25
    assert (evaluation.subject, evaluation.data, evaluation.threshold) == ("darkness", str(labelled), LIMIT)
    assert evaluation.skipped == []


def test_what_goes_into_the_contract(labelled: Path) -> None:
    evaluation, _ = evaluate(subject(), labelled)
    metrics, overall = evaluation.as_metrics(), evaluation.overall
    assert (metrics.images, metrics.false_reject_rate, metrics.miss_rate) == (10, 0.25, overall.miss_rate)
    figures = (overall.image_auroc, overall.pixel_auroc, overall.au_pro)
    assert (metrics.image_auroc, metrics.pixel_auroc, metrics.au_pro) == figures


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


def test_good_parts_alone_give_a_false_reject_rate(labelled: Path) -> None:
    remove(labelled / "test/dent"), remove(labelled / "test/stain")
    evaluation, _ = evaluate(subject(), labelled)
    assert (evaluation.good_parts, evaluation.defective_parts, evaluation.by_defect) == (4, 0, [])
    assert evaluation.false_reject_rate == 0.25
    row = evaluation.overall
    assert (row.parts, row.parts_with_mask) == (0, 0)
    assert {row.image_auroc, row.pixel_auroc, row.au_pro, row.f1, row.miss_rate} == {None}
    assert "rejects 25.0% of 4 good, misses \N{EN DASH} of 0 defective parts" in format_table(evaluation)


def test_a_plain_folder_holds_good_parts(labelled: Path) -> None:
    evaluation, judged = evaluate(subject(), labelled / "test/good")
    assert (evaluation.good_parts, evaluation.defective_parts) == (4, 0)
    assert {p.defect for p in judged.parts} == {"good"}


def test_defective_parts_alone(labelled: Path) -> None:
    remove(labelled / "test/good")
    evaluation, _ = evaluate(subject(), labelled)
    row = evaluation.overall
    assert (evaluation.false_reject_rate, row.image_auroc) == (None, None)
    assert row.miss_rate == pytest.approx(1 / 6)
    assert row.f1 == pytest.approx(10 / 11)
    assert row.pixel_auroc is not None and row.au_pro is not None


def test_pixels_that_are_all_defective_say_nothing(labelled: Path) -> None:
    remove(labelled / "test/good"), remove(labelled / "test/stain")
    for path in (labelled / "ground_truth/dent").iterdir():
        write(path, np.full(SIZE_HW, 255, np.uint8))
    row = evaluate(subject(), labelled)[0].overall
    assert (row.parts_with_mask, row.pixel_auroc, row.au_pro) == (3, None, None)


def test_no_test_parts(labelled: Path) -> None:
    remove(labelled / "test")
    with pytest.raises(DatasetError, match="has no test parts; add test/good and test/<defect> folders"):
        evaluate(subject(), labelled)


def test_bad_files_stop_it_or_are_skipped_by_name(labelled: Path) -> None:
    bad_part, bad_mask = labelled / "test/dent/001.png", labelled / "ground_truth/stain/000_mask.png"
    bad_part.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1 of 10 images cannot be used: .*dent/001.png: is empty"):
        evaluate(subject(), labelled)
    write(bad_mask, np.zeros((5, 5), np.uint8) + 255)
    evaluation, judged = evaluate(subject(), labelled, skip_bad=True)
    assert [problem.split(":")[0] for problem in evaluation.skipped] == [str(bad_part), str(bad_mask)]
    assert bad_part not in [p.path for p in judged.parts]
    assert (evaluation.defective_parts, evaluation.overall.parts_with_mask) == (5, 2)
    write(bad_part, part(0, []))
    with pytest.raises(ImageError) as caught:
        evaluate(subject(), labelled)
    assert str(caught.value).startswith(f"{bad_mask}: is 5x5, expected at least 16 pixels a side")
    assert str(caught.value).endswith("(--skip-bad goes on without it)")


@pytest.mark.parametrize("where", ["map", "score"])
def test_answers_that_are_not_numbers(labelled: Path, where: str) -> None:
    def broken(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        maps, scores = darkness(frames_u8)
        (maps if where == "map" else scores).flat[3] = np.nan
        return maps, scores

    with pytest.raises(BackendError, match="darkness answered NaN or infinity; train or export it again"):
        evaluate(subject(broken), labelled)


def test_progress(labelled: Path) -> None:
    for i in range(20):
        write(labelled / f"test/good/1{i:02d}.png", part(i, []))
    told: list[tuple[int, int]] = []
    evaluate(subject(), labelled, progress=lambda done, total: told.append((done, total)))
    assert told == [(16, 30), (30, 30)]


def test_the_parts_worth_looking_at(labelled: Path) -> None:
    _, judged = evaluate(subject(), labelled)
    shown = parts_to_show(labelled, judged, 0.5)
    scores = {
        p.path.relative_to(labelled).as_posix(): float(s) for p, s in zip(judged.parts, judged.scores, strict=True)
    }
    by_score = sorted(scores, key=lambda name: scores[name])
    bad = [name for name in by_score if "/good/" not in name]
    good = [name for name in by_score if "/good/" in name]
    assert {heading.split(":")[1].strip(): [p.name for p in parts] for heading, parts in shown.items()} == {
        "scores nearest to the threshold": sorted(scores, key=lambda name: abs(scores[name] - 0.5))[:6],
        "defects with the lowest scores": bad[:6],
        "good parts with the highest scores": good[::-1],
        "defects with the highest scores": bad[::-1][:6],
    }
    for one in shown["Worst: defects with the lowest scores"]:
        assert one.score == scores[one.name]
        assert (one.mask is None) == (one.name == "test/dent/003.png")


def test_run_and_bundle_agree(tiny_run: Path, tiny_bundle: Path, parts_folder: Path) -> None:
    (by_run, run_parts), (by_bundle, bundle_parts) = (
        evaluate(open_subject(path, "fp32"), parts_folder) for path in (tiny_run, tiny_bundle)
    )
    np.testing.assert_allclose(run_parts.scores, bundle_parts.scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(run_parts.maps, bundle_parts.maps, rtol=0, atol=1e-4)
    assert by_run.overall.image_auroc == by_bundle.overall.image_auroc
    assert by_run.overall.au_pro == pytest.approx(by_bundle.overall.au_pro, abs=1e-4)
    assert by_run.overall.pixel_auroc == pytest.approx(by_bundle.overall.pixel_auroc, abs=1e-4)
    assert (by_run.good_parts, by_run.defective_parts) == (4, 4)


def test_verb_prints_writes_json_and_report(
    tiny_bundle: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, report = tmp_path / "figures.json", tmp_path / "report.html"
    command = ["evaluate", str(tiny_bundle), str(parts_folder), "--json", str(figures), "--report", str(report)]
    assert main(command) == 0
    evaluation = msgspec.json.decode(figures.read_bytes(), type=Evaluation)
    assert evaluation == evaluate(open_subject(tiny_bundle, "fp32"), parts_folder)[0]
    printed = capsys.readouterr()
    assert printed.out == f"{format_table(evaluation)}\nreport: {report}\n"
    assert printed.err == ""
    page = report.read_text(encoding="utf-8")
    assert f"Inspection report: {tiny_bundle.name}" in page
    assert f"{evaluation.overall.image_auroc:.4f}" in page
    assert sorted(os.listdir(tmp_path)) == ["figures.json", "report.html"]


def test_table(labelled: Path) -> None:
    evaluation, _ = evaluate(subject(), labelled)
    lines = format_table(evaluation).splitlines()
    assert re.split("  +", lines[0]) == ["Defect", "Parts", "Image AUROC", "Pixel AUROC", "AU-PRO 0.3", "F1", "Missed"]
    assert [line.split()[:2] for line in lines[1:4]] == [["dent", "4"], ["stain", "2"], ["all", "6"]]
    assert lines[4] == "threshold 0.5000: rejects 25.0% of 4 good, misses 16.7% of 6 defective parts"
    assert lines[5] == (
        "note: 1.00% false rejects need 99 held-out good parts, 19 were there: the threshold is their highest score, "
        "and new good parts will show 5.00% on average (0.00% to 17.60%)"
    )
    assert lines[6] == "note: 1 empty masks of defective parts left out of pixel figures"


def test_skipped_files_are_told(
    tiny_bundle: Path, parts_folder: Path, copied: Copied, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied(parts_folder)
    (data / "test/good/000.png").write_bytes(b"")
    assert main(["evaluate", str(tiny_bundle), str(data), "--skip-bad"]) == 0
    assert capsys.readouterr().err == f"skipped {data}/test/good/000.png: is empty (0 bytes)\n"


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_full_disk_leaves_the_old_file(
    tiny_bundle: Path, parts_folder: Path, tmp_path: Path, refused: Refused, disk_of: DiskOf, option: str
) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"the last good one")
    with disk_of(600):  # the table that is printed has fewer bytes, what is written has more
        message = refused("evaluate", tiny_bundle, parts_folder, option, old)
    assert "File too large" in message and str(old) in message
    assert old.read_bytes() == b"the last good one"
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_missing_folder_is_found_before_the_work(
    tiny_bundle: Path, tmp_path: Path, refused: Refused, option: str
) -> None:
    path = tmp_path / "no" / "file"
    message = refused("evaluate", tiny_bundle, tmp_path / "not looked at", option, path)
    assert message == f"rdedge: error: {path}: no such folder {path.parent}; make it first\n"


def test_a_threshold_that_cannot_be_drawn(labelled: Path, tmp_path: Path) -> None:
    evaluation, judged = evaluate(subject(), labelled)
    flat = msgspec.structs.replace(evaluation, threshold=msgspec.structs.replace(LIMIT, value=0.0))
    with pytest.raises(UsageError, match="darkness: a report needs a threshold above zero, got 0"):
        write_evaluation_report(tmp_path / "report.html", subject(), flat, judged, labelled)
    assert not (tmp_path / "report.html").exists()


def test_names_that_are_not_utf8_reach_the_json(tiny_bundle: Path, parts_folder: Path, copied: Copied) -> None:
    data = copied(parts_folder)
    strange = data / "test" / os.fsdecode(b"\xe9caille")
    (data / "test/scratch").rename(strange)
    (data / "ground_truth/scratch").rename(data / "ground_truth" / strange.name)
    (strange / "000.png").rename(strange / os.fsdecode(b"\xff.png"))
    (strange / "001.png").write_bytes(b"")
    figures, report = data / "figures.json", data / "report.html"
    command = ["evaluate", str(tiny_bundle), str(data), "--json", str(figures), "--report", str(report), "--skip-bad"]
    assert main(command) == 0
    rows = json.loads(figures.read_bytes())["by_defect"]
    assert [(row["defect"], row["parts"], row["parts_with_mask"]) for row in rows] == [(r"\udce9caille", 3, 2)]
