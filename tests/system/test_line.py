"""From parts to verdicts through the commands alone, on a strip with a region of interest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.images import read_image

WriteParts = Callable[..., Path]

PICTURE_HW = (80, 150)
ROI_XYWH = (20, 8, 110, 64)
INPUT_HW = (64, 96)


def rdedge(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory, write_parts: WriteParts) -> Path:
    folder = tmp_path_factory.mktemp("strips") / "parts"
    return write_parts(folder, good=12, test_good=4, scratched=4, size_hw=PICTURE_HW)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, strips: Path) -> Path:
    folder = tmp_path_factory.mktemp("strip-bundle")
    roi, size = ",".join(map(str, ROI_XYWH)), f"{INPUT_HW[0]}x{INPUT_HW[1]}"
    rdedge("train", strips, "--out", folder / "run", "--image-size", size, "--roi", roi, "--epochs", 8)
    rdedge("export", folder / "run", "--out", folder / "bundle", "--false-reject-rate", 0.3)
    return folder / "bundle"


def verdicts(bundle: Path, source: Path, out: Path) -> dict[str, dict[str, object]]:
    rdedge("run", bundle, "--source", source, "--out", out)
    lines = (out / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return {Path(line["source"]).relative_to(source).as_posix(): line for line in map(json.loads, lines)}


def test_size_and_region_reach_the_contract(bundle: Path) -> None:
    contract = open_bundle(bundle).contract
    assert contract.input.size_hw == INPUT_HW
    assert contract.input.roi_xywh == ROI_XYWH
    assert contract.graph.frame.shape == (1, *INPUT_HW, 3)
    assert contract.graph.anomaly_map.shape == (1, 1, *INPUT_HW)


def test_scratches_are_found_where_they_are(bundle: Path, strips: Path, tmp_path: Path) -> None:
    good = verdicts(bundle, strips / "test/good", tmp_path / "good")
    scratched = verdicts(bundle, strips / "test/scratch", tmp_path / "scratched")
    assert len(good) == len(scratched) == 4
    worst_good = max(float(str(v["score"])) for v in good.values())
    for name, verdict in scratched.items():
        assert verdict["verdict"] == "anomalous"
        assert float(str(verdict["score"])) > 2 * worst_good
        assert covers(verdict, strips / "ground_truth/scratch" / name.replace(".png", "_mask.png"))
    assert len(list((tmp_path / "scratched").rglob("rejects/**/*.*"))) >= 4


def covers(verdict: dict[str, object], mask_path: Path) -> bool:
    """The regions, in source pixels, hold the middle of the defect and stay inside the region of interest."""
    rows, columns = np.nonzero(cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE))
    middle_x, middle_y = columns.mean(), rows.mean()
    regions = verdict["regions"]
    assert isinstance(regions, list) and regions
    boxes = [region["box_xywh"] for region in regions]
    x0, y0, roi_w, roi_h = ROI_XYWH
    for x, y, w, h in boxes:
        assert x0 <= x and x + w <= x0 + roi_w and y0 <= y and y + h <= y0 + roi_h
    return any(x <= middle_x < x + w and y <= middle_y < y + h for x, y, w, h in boxes)


def test_what_lies_outside_the_region_changes_nothing(bundle: Path, strips: Path, tmp_path: Path) -> None:
    x, y, w, h = ROI_XYWH
    (tmp_path / "painted").mkdir()
    for path in sorted((strips / "test/good").iterdir()):
        picture: NDArray[np.uint8] = read_image(path)
        painted = np.zeros_like(picture)
        painted[y : y + h, x : x + w] = picture[y : y + h, x : x + w]
        cv2.imwrite(str(tmp_path / "painted" / path.name), painted)
    before = verdicts(bundle, strips / "test/good", tmp_path / "before")
    after = verdicts(bundle, tmp_path / "painted", tmp_path / "after")
    assert {name: v["score"] for name, v in before.items()} == {name: v["score"] for name, v in after.items()}


def test_the_lab_and_the_line_give_the_same_scores(
    bundle: Path, strips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    rdedge("evaluate", bundle, strips, "--json", figures)
    rdedge("evaluate", bundle.parent / "run", strips, "--json", tmp_path / "run.json")
    of_bundle, of_run = (json.loads(p.read_bytes()) for p in (figures, tmp_path / "run.json"))
    line = verdicts(bundle, strips / "test", tmp_path / "line")
    limit = of_bundle["threshold"]["value"]
    assert {v["threshold"] for v in line.values()} == {limit}
    is_rejected = {name: float(str(v["score"])) > limit for name, v in line.items()}
    assert of_bundle["false_reject_rate"] == sum(is_rejected[f"good/{i:03d}.png"] for i in range(4)) / 4
    assert of_bundle["overall"]["miss_rate"] == 1 - sum(is_rejected[f"scratch/{i:03d}.png"] for i in range(4)) / 4
    assert of_bundle["overall"]["image_auroc"] == of_run["overall"]["image_auroc"] == 1.0
    assert of_bundle["overall"]["au_pro"] == pytest.approx(of_run["overall"]["au_pro"], abs=1e-4)
