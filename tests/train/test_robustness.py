"""Disturbed conditions: each does what its name says to the camera's picture, masks go along, figures follow."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.cli import main
from rdedge.contract import InputSpec
from rdedge.good_parts import Threshold
from rdedge.images import read_image
from rdedge_train.data import LabelledPart
from rdedge_train.evaluate import evaluate
from rdedge_train.robustness import CONDITIONS, NOISE_LEVELS, SHIFT_SHARE, disturbed, robustness
from rdedge_train.subject import Subject

Image = NDArray[np.uint8]
SIZE_HW = (96, 128)
MODEL_HW = (48, 64)
LIMIT = Threshold(
    value=0.6,
    rule="quantile",
    target_rate=0.01,
    expected_rate=0.01,
    rate_low=0.0,
    rate_high=0.1,
    confidence=0.95,
    parts=99,
)


def darkness(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The darker, the more anomalous."""
    maps = np.float32(1.0) - frames_u8.mean(axis=3, dtype=np.float32) / np.float32(255.0)
    return maps, maps.max(axis=(1, 2))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Grey parts of level 120 (score 0.53) with a little texture; defects are black squares near a corner."""
    root = tmp_path / "parts"
    for folder, count in (("train/good", 1), ("test/good", 4), ("test/hole", 4)):
        for i in range(count):
            image = np.full((*SIZE_HW, 3), 120, np.uint8)
            image[::2, ::2] += np.uint8(4)
            mask = np.zeros(SIZE_HW, np.uint8)
            if folder == "test/hole":
                image[10:30, 12:32], mask[10:30, 12:32] = 0, 255
                (root / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / f"ground_truth/hole/{i}_mask.png"), mask)
            (root / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / folder / f"{i}.png"), image)
    return root


def subject() -> Subject:
    spec = InputSpec(size_hw=MODEL_HW, colour_order="rgb", resize="area+linear", roi_xywh=None)
    return Subject(name="darkness", input=spec, image_threshold=LIMIT, predict=darkness, facts={})


def hole(parts: Path, number: int = 0) -> LabelledPart:
    truth = parts / f"ground_truth/hole/{number}_mask.png"
    return LabelledPart(path=parts / f"test/hole/{number}.png", defect="hole", mask_paths=(truth,))


def under(name: str, part: LabelledPart, index: int = 0) -> tuple[Image, Image]:
    (condition,) = [c for c in CONDITIONS if c.name.startswith(name)]
    image, mask = disturbed(condition, part, index, MODEL_HW)
    assert mask is not None
    return image, mask


def test_as_taken_is_the_picture_itself(parts: Path) -> None:
    image, mask = under("as taken", hole(parts))
    assert (image == read_image(hole(parts).path)).all()
    assert mask.sum() == 400 * 255


@pytest.mark.parametrize(("name", "factor"), [("20 % darker", 0.8), ("20 % brighter", 1.2)])
def test_light(parts: Path, name: str, factor: float) -> None:
    image, _ = under(name, hole(parts))
    assert (image == np.rint(read_image(hole(parts).path) * factor)).all()


def test_light_is_cut_off_at_white(parts: Path) -> None:
    assert cv2.imwrite(str(hole(parts).path), np.full((*SIZE_HW, 3), 250, np.uint8))
    assert (under("20 % brighter", hole(parts))[0] == 255).all()


def test_focus_blurs_by_a_pixel_of_the_model(parts: Path) -> None:
    original = read_image(hole(parts).path)
    image, _ = under("out of focus", hole(parts))
    assert (image == cv2.GaussianBlur(original, (0, 0), 2.0)).all()  # the picture is twice the model's input


def test_jpeg_loses_texture_not_brightness(parts: Path) -> None:
    original = read_image(hole(parts).path)
    image, _ = under("JPEG", hole(parts))
    assert image.shape == original.shape
    assert (image != original).any()
    assert abs(float(image.mean()) - float(original.mean())) < 1.0


def test_noise_has_its_deviation_and_no_offset(parts: Path) -> None:
    flat = hole(parts)
    assert cv2.imwrite(str(flat.path), np.full((*SIZE_HW, 3), 128, np.uint8))
    image, _ = under("noise", flat)
    assert image.std() == pytest.approx(NOISE_LEVELS, rel=0.03)
    assert image.mean() == pytest.approx(128.0, abs=0.2)


@pytest.mark.parametrize("name", ["shifted", "turned"])
def test_motion_takes_the_mask_along_and_stays_within_the_jig(parts: Path, name: str) -> None:
    offsets = []
    for index in range(20):
        image, mask = under(name, hole(parts), index)
        is_dark = image.mean(axis=2) < 60
        assert (is_dark == (mask > 127)).mean() > 0.99
        rows, columns = np.nonzero(mask)
        offsets.append((rows.mean() - 19.5, columns.mean() - 21.5))
        assert (image[:, -1] > 100).all(), "the border repeats, no black comes in"
    spread = np.abs(offsets).max(axis=0)
    assert (spread > 0.5).all(), "parts move"
    if name == "shifted":
        assert (spread <= np.array(SIZE_HW) * SHIFT_SHARE + 0.51).all()
        assert np.min(offsets) < -0.5 and np.max(offsets) > 0.5, "either way"


def test_strengths_are_the_same_in_every_run_and_differ_between_parts(parts: Path) -> None:
    for name in ("shifted", "turned", "noise"):
        first, again, other = (under(name, hole(parts), index)[0] for index in (3, 3, 4))
        assert (first == again).all()
        assert (first != other).any()


def test_figures_under_each_condition(parts: Path) -> None:
    judged = evaluate(subject(), parts)[1]
    rows = {row.condition: row for row in robustness(subject(), judged.parts)}
    assert list(rows) == [condition.name for condition in CONDITIONS]
    plain = rows["as taken"]
    assert (plain.image_auroc, plain.false_reject_rate, plain.miss_rate) == (1.0, 0.0, 0.0)
    assert plain.au_pro == pytest.approx(1.0), "but for a sum's rounding"
    assert rows["20 % darker"].false_reject_rate == 1.0  # level 96 scores 0.62
    assert rows["20 % brighter"].false_reject_rate == 0.0
    for name in ("shifted up to 2%", "turned up to 2 degrees"):
        assert rows[name].image_auroc == 1.0
        au_pro = rows[name].au_pro
        assert au_pro is not None and au_pro > 0.95, "the mask has moved with the part"


def test_parts_without_mask_or_defects_have_no_such_figures(parts: Path) -> None:
    good = evaluate(subject(), parts)[1].parts[:4]
    row = robustness(subject(), good)[0]
    assert (row.image_auroc, row.au_pro, row.miss_rate) == (None, None, None)
    assert row.false_reject_rate == 0.0
    unmarked = LabelledPart(path=hole(parts).path, defect="hole")
    row = robustness(subject(), (*good, unmarked))[0]
    assert (row.image_auroc, row.au_pro) == (1.0, None)


def test_the_verb_prints_and_reports_them(
    tiny_bundle: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, report = tmp_path / "figures.json", tmp_path / "report.html"
    command: list[object] = ["evaluate", tiny_bundle, parts_folder, "--robustness", "--json", figures]
    assert main([*map(str, command), "--report", str(report)]) == 0
    rows = json.loads(figures.read_bytes())["robustness"]
    assert [row["condition"] for row in rows] == [condition.name for condition in CONDITIONS]
    table, page = capsys.readouterr().out, report.read_text()
    for row in rows:
        assert f"\n{row['condition']}  " in table
        assert f"<td>{row['condition']}</td><td>{row['image_auroc']:.4f}</td>" in page
    assert page.index("Under other conditions") < page.index("How it was made")
