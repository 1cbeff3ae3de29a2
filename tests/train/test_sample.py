"""The demo data set: right folders, same bytes from the same seed, honest masks, no invisible defect."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rdedge.errors import UsageError
from rdedge_train import sample
from rdedge_train.sample import DEFECTS, MASK_GREY, SamplePlan, make_sample, render_part
from rdedge_train.sample_camera import photograph, sensor_noise
from rdedge_train.sample_part import RIM_R, Flaw, draw_scene

SMALL = SamplePlan(train_good=2, test_good=1, test_per_defect=1, video_frames=5, size_hw=(96, 128), seed=3)
SIZE_HW = (224, 224)


def shot(seed: int, defect: str, size_hw: tuple[int, int] = SIZE_HW):
    """(good picture, picture with the defect, mask): the same shot, before sensor noise."""
    rng = np.random.default_rng([5, seed])
    scene = draw_scene(rng, size_hw)
    good = photograph(scene, Flaw())
    return scene, good, *sample._spoilt(rng, scene, good, defect)


def png_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "new" / "demo", SMALL)


def test_folders_are_those_of_mvtec_ad(folder):
    expected = {
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        "line.mkv",
        "line.truth.json",
    }
    expected |= {f"test/{defect}/000.png" for defect in DEFECTS}
    expected |= {f"ground_truth/{defect}/000_mask.png" for defect in DEFECTS}
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == expected
    assert [p.name for p in folder.parent.iterdir()] == ["demo"]
    image = cv2.imread(str(folder / "train/good/000.png"), cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(folder / "ground_truth/dent/000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (96, 128, 3)
    assert mask.shape == (96, 128)
    assert set(np.unique(mask)) == {0, 255}


def test_same_seed_same_bytes_and_no_part_twice(folder, tmp_path):
    first = png_bytes(folder)
    assert png_bytes(make_sample(tmp_path / "again", SMALL)) == first
    other = SamplePlan(train_good=1, test_good=0, test_per_defect=0, video_frames=0, size_hw=(96, 128), seed=4)
    assert png_bytes(make_sample(tmp_path / "other", other))["train/good/000.png"] not in first.values()
    assert len(set(first.values())) == len(first)


def test_video_is_lossless_and_its_truth_matches(folder):
    truth = json.loads((folder / "line.truth.json").read_text())
    assert [entry["frame"] for entry in truth] == list(range(SMALL.video_frames))
    assert sum(entry["defect"] is not None for entry in truth) == 1
    video = cv2.VideoCapture(str(folder / "line.mkv"))
    for entry in truth:
        ok, frame_bgr_u8 = video.read()
        assert ok
        rng = sample.part_rng(SMALL, 2 + len(DEFECTS), entry["frame"])
        np.testing.assert_array_equal(frame_bgr_u8, render_part(rng, SMALL.size_hw, entry["defect"])[0])
    assert not video.read()[0]
    video.release()


def test_a_quarter_of_the_default_line_is_defective_with_every_kind(tmp_path, monkeypatch):
    def black(rng, size_hw, defect):
        return np.zeros((*size_hw, 3), np.uint8), np.zeros(size_hw, np.uint8)

    monkeypatch.setattr(sample, "render_part", black)
    sample.write_video(tmp_path, SamplePlan(size_hw=(32, 32)), lambda done: None)
    kinds = [entry["defect"] for entry in json.loads((tmp_path / "line.truth.json").read_text())]
    assert len(kinds) == 60
    assert sum(kind is not None for kind in kinds) == 15
    assert {kind for kind in kinds if kind} == set(DEFECTS)


def test_good_part_has_an_empty_mask_and_the_bad_one_shares_its_shot():
    good, empty = render_part(np.random.default_rng(1), SIZE_HW)
    bad, mask = render_part(np.random.default_rng(1), SIZE_HW, "stain")
    assert good.dtype == bad.dtype == empty.dtype == mask.dtype == np.uint8
    assert not empty.any()
    assert np.abs(good.astype(int) - bad)[mask == 0].max() <= MASK_GREY + 2


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_on_the_part_visible_and_covered_by_its_mask(defect):
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]] - 111.5
    for seed in range(20):
        scene, good, bad, mask = shot(seed, defect)
        change = np.abs(bad - good).max(axis=2)
        assert change[mask == 0].max() <= MASK_GREY, seed
        # Beyond the noise of one pixel by far on average, and over more than a few pixels.
        noise = np.std(sensor_noise(np.random.default_rng(seed), bad) - bad)
        assert change[mask > 0].mean() > 5 * noise, seed
        assert 20 <= (mask > 0).sum() <= 0.03 * mask.size, seed
        scale = SIZE_HW[0] / 320
        r = np.hypot(x - scene.shift_xy[0] * scale, y - scene.shift_xy[1] * scale)
        assert r[mask > 0].max() <= RIM_R * scale + 3, seed


def test_unknown_defect_is_refused():
    with pytest.raises(ValueError, match="unknown defect 'rust': one of dent, missing, scratch, stain"):
        render_part(np.random.default_rng(0), (96, 96), "rust")


def test_existing_folder_is_refused(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        make_sample(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    write, calls = cv2.imwrite, []

    def fails_on_third(path, image):
        calls.append(path)
        return len(calls) < 3 and write(path, image)

    monkeypatch.setattr(cv2, "imwrite", fails_on_third)
    with pytest.raises(OSError, match=r"cannot write .*000\.png"):
        make_sample(tmp_path / "demo", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_during_the_video_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "demo", SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_picture_and_frame(tmp_path):
    plan = SamplePlan(train_good=1, test_good=1, test_per_defect=0, video_frames=2, size_hw=(96, 96))
    seen = []
    make_sample(tmp_path / "demo", plan, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
