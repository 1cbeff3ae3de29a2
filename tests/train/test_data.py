"""Data folders: what is found, split, read, and refused by name and reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import DatasetError, ImageError
from rdedge.images import read_image
from rdedge.preprocess import preprocess
from rdedge_train.data import LabelledPart, find_images, read_frames, read_part_mask, read_usable, split_good

DrawWasher = Callable[..., NDArray[np.uint8]]
WriteParts = Callable[..., Path]

HELD_OUT_OF_40 = ["002", "003", "004", "011", "023", "024", "027", "034"]
SPEC = InputSpec(size_hw=(64, 96), colour_order="rgb", resize="area+linear", roi_xywh=None)


def names(paths: tuple[Path, ...], root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in paths]


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"not looked into")
    return root


def test_mvtec_layout(tmp_path: Path, write_parts: WriteParts) -> None:
    root = write_parts(tmp_path / "parts", good=3, test_good=2, scratched=2)
    (root / "ground_truth/scratch/001_mask.png").unlink()
    dataset = find_images(root)
    assert (dataset.layout, dataset.root) == ("mvtec", root)
    assert names(dataset.good_paths, root) == [f"train/good/{i:03d}.png" for i in range(3)]
    assert [(p.path.relative_to(root).as_posix(), p.defect) for p in dataset.test_parts] == [
        ("test/good/000.png", "good"),
        ("test/good/001.png", "good"),
        ("test/scratch/000.png", "scratch"),
        ("test/scratch/001.png", "scratch"),
    ]
    masks = [p.mask_paths for p in dataset.test_parts]
    assert masks == [(), (), (root / "ground_truth/scratch/000_mask.png",), ()]


def test_plain_and_nested_folders(tmp_path: Path) -> None:
    root = touch(tmp_path, "b.PNG", "a.jpg", "monday/z.tif", "monday/late/y.bmp", "notes.txt", "monday/x.csv")
    dataset = find_images(root)
    assert (dataset.layout, dataset.test_parts) == ("plain", ())
    assert names(dataset.good_paths, root) == ["a.jpg", "b.PNG", "monday/late/y.bmp", "monday/z.tif"]


def test_hidden_files_and_folders_are_no_parts(tmp_path: Path) -> None:
    files = ("train/good/a.png", "train/good/._a.png", "train/good/.thumbnails/a.png", "train/good/.x/y/a.png")
    root = touch(tmp_path / ".project", *files, "test/good/b.png", "test/.ipynb_checkpoints/b.png")
    dataset = find_images(root)  # the folder named may itself lie below a hidden one
    assert names(dataset.good_paths, root) == ["train/good/a.png"]
    assert [p.path.relative_to(root).as_posix() for p in dataset.test_parts] == ["test/good/b.png"]


@pytest.mark.parametrize(
    ("mask", "picture"),
    [
        ("scratch/000_mask.png", "scratch/000.png"),
        ("scratch/000.png", "scratch/000.png"),
        ("scratch/000_mask.bmp", "scratch/000.jpg"),
        ("scratch/left/000_mask.png", "scratch/left/000.png"),
    ],
    ids=["mvtec", "same-name", "other-format", "nested"],
)
def test_masks_are_found_by_name(tmp_path: Path, mask: str, picture: str) -> None:
    root = touch(tmp_path, "train/good/a.png", f"test/{picture}", f"ground_truth/{mask}")
    assert [p.mask_paths for p in find_images(root).test_parts] == [(root / "ground_truth" / mask,)]


def test_masks_of_equal_names_in_nested_folders_are_not_mixed_up(tmp_path: Path) -> None:
    files = [
        f"{top}/scratch/{side}/0{end}"
        for side in "ab"
        for top, end in [("test", ".png"), ("ground_truth", "_mask.png")]
    ]
    root = touch(tmp_path, "train/good/a.png", *files)
    for part in find_images(root).test_parts:
        assert part.mask_paths == (root / "ground_truth/scratch" / part.path.parent.name / "0_mask.png",)


def test_masks_of_good_parts_are_not_read(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/good/a.png", "test/good/0.png", "ground_truth/good/0_mask.png")
    assert [p.mask_paths for p in find_images(root).test_parts] == [()]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ((), "holds no good images; name a folder of good images, or one laid out like MVTec AD"),
        (("notes.txt",), "holds no good images; name a folder"),
        (("train/good/notes.txt", "test/good/a.png"), "holds no good images; name a folder"),
        (("test/good/a.png",), "has the folders test/: none of the known forms; name a folder"),
        (("ground_truth/scratch/a.png",), "has the folders ground_truth/: none of the known forms; name a folder"),
    ],
    ids=["empty", "no-image", "mvtec-without-image", "test-only", "truth-only"],
)
def test_folders_without_good_parts(tmp_path: Path, files: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(DatasetError) as caught:
        find_images(touch(tmp_path, *files))
    assert str(caught.value).startswith(f"{tmp_path}: {complaint}")


@pytest.mark.parametrize("kind", ["missing", "file", "dangling link"])
def test_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "parts"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match="parts: no such folder; name a folder of good images"):
        find_images(path)


@pytest.mark.parametrize("n", [2, 3, 10, 37])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_split_is_complete_disjoint_and_in_order(n: int, share: float) -> None:
    paths = [Path(f"{i:03d}.png") for i in range(n)]
    train, held_out = split_good(paths, share, seed=5)
    assert sorted((*train, *held_out)) == paths
    assert not set(train) & set(held_out)
    assert list(train) == sorted(train) and list(held_out) == sorted(held_out)
    assert len(held_out) == min(n - 1, max(1, round(share * n)))


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    paths = [Path(f"{i:03d}.png") for i in range(40)]
    assert split_good(paths, 0.2, 7) == split_good(paths, 0.2, 7)
    assert len({split_good(paths, 0.2, seed)[1] for seed in range(10)}) == 10
    # Written down, so that a run can be resumed by any later version.
    assert [p.stem for p in split_good(paths, 0.2, 0)[1]] == HELD_OUT_OF_40


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_parts_to_split(n: int) -> None:
    complaint = f"{n} good image, training and threshold need at least one each; collect more good parts"
    with pytest.raises(DatasetError, match=complaint):
        split_good([Path("line/a.png")] * n, 0.2, 0)


@pytest.fixture
def mixed(tmp_path: Path, draw_washer: DrawWasher) -> dict[str, Path]:
    """One part each of many sizes, formats and colour kinds."""
    pictures = {
        "colour.png": draw_washer(0, (64, 96)),
        "grey.png": draw_washer(1, (64, 96))[:, :, 0],
        "large.jpg": draw_washer(2, (300, 400)),
        "small.bmp": draw_washer(3, (20, 31)),
        "tall.tif": draw_washer(4, (200, 50)),
        "grey.jpeg": draw_washer(5, (65, 97))[:, :, 1],
        "web.webp": draw_washer(6, (80, 80)),
        "portable.pgm": draw_washer(7, (90, 70))[:, :, 2],
    }
    for name, picture in pictures.items():
        assert cv2.imwrite(str(tmp_path / name), picture)
    return {name: tmp_path / name for name in pictures}


def test_mixed_sizes_formats_and_colours_are_read_as_the_line_reads_them(
    tmp_path: Path, mixed: dict[str, Path]
) -> None:
    paths = find_images(tmp_path).good_paths
    assert set(paths) == set(mixed.values())
    frames, bad = read_usable(tmp_path, paths, SPEC, skip_bad=False)
    assert (frames.paths, bad) == (paths, [])
    assert frames.frames_u8.shape == (len(paths), 64, 96, 3)
    for path, frame_u8 in zip(paths, frames.frames_u8, strict=True):
        assert np.array_equal(frame_u8, preprocess(read_image(path), SPEC)[0]), path.name


def test_hash_covers_names_order_and_bytes(tmp_path: Path, mixed: dict[str, Path]) -> None:
    paths = find_images(tmp_path).good_paths
    sha256 = read_frames(tmp_path, paths, SPEC).sha256
    moved = Path(shutil.copytree(tmp_path, tmp_path.with_name("moved")))
    assert read_frames(moved, find_images(moved).good_paths, SPEC).sha256 == sha256
    assert read_frames(tmp_path, paths[::-1], SPEC).sha256 != sha256
    mixed["colour.png"].rename(tmp_path / "color.png")
    assert read_frames(tmp_path, find_images(tmp_path).good_paths, SPEC).sha256 != sha256
    (tmp_path / "color.png").rename(mixed["colour.png"])
    mixed["small.bmp"].write_bytes(mixed["small.bmp"].read_bytes() + b"\0")
    assert read_frames(tmp_path, paths, SPEC).sha256 != sha256


def test_some_of_the_frames_are_as_if_read_alone(tmp_path: Path, mixed: dict[str, Path]) -> None:
    paths = find_images(tmp_path).good_paths
    some, alone = read_frames(tmp_path, paths, SPEC).only(paths[3:0:-1]), read_frames(tmp_path, paths[3:0:-1], SPEC)
    assert np.array_equal(some.frames_u8, alone.frames_u8)
    assert (some.paths, some.sha256) == (alone.paths, alone.sha256)


def test_a_bad_image_ends_read_frames(tmp_path: Path, mixed: dict[str, Path]) -> None:
    spoil(tmp_path)
    with pytest.raises(ImageError, match=r"alpha\.png: has an alpha channel"):
        read_frames(tmp_path, find_images(tmp_path).good_paths, SPEC)


def test_names_that_are_not_utf8(tmp_path: Path, mixed: dict[str, Path]) -> None:
    name = os.fsdecode(b"b\xe4d.png")
    mixed["colour.png"].rename(tmp_path / name)
    paths = find_images(tmp_path).good_paths
    assert name in [p.name for p in paths]
    assert len(read_frames(tmp_path, paths, SPEC).frames_u8) == len(mixed)


def spoil(root: Path) -> dict[str, str]:
    """Adds files that cannot be used; returns their names and the reason expected."""
    sixteen = np.zeros((64, 64), np.uint16)
    alpha = np.zeros((64, 64, 4), np.uint8)
    cv2.imwrite(str(root / "deep.png"), sixteen)
    cv2.imwrite(str(root / "alpha.png"), alpha)
    cv2.imwrite(str(root / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("not a picture")
    (root / "short.png").write_bytes((root / "colour.png").read_bytes()[:-40])
    (root / "gone.png").symlink_to(root / "nowhere.png")
    return {
        "alpha.png": "has an alpha channel",
        "deep.png": "has 16 bits per channel",
        "dot.png": "is 1x1",
        "empty.png": "is empty (0 bytes)",
        "gone.png": "cannot be read (No such file or directory)",
        "short.png": "truncated PNG",
        "text.jpg": "damaged, or not an image",
    }


def test_bad_images_are_all_named_with_their_reason(tmp_path: Path, mixed: dict[str, Path]) -> None:
    bad = spoil(tmp_path)
    paths = find_images(tmp_path).good_paths
    with pytest.raises(DatasetError) as caught:
        read_usable(tmp_path, paths, SPEC, skip_bad=False)
    assert caught.value.problem.startswith(f"7 of {len(mixed) + 7} images cannot be used: ")
    for name, reason in bad.items():
        assert f"{tmp_path / name}: {reason}" in caught.value.problem
    assert caught.value.remedy.endswith("(--skip-bad goes on without bad images)")


def test_skip_bad_goes_on_with_the_others_and_returns_the_reasons(tmp_path: Path, mixed: dict[str, Path]) -> None:
    bad = spoil(tmp_path)
    good, errors = read_usable(tmp_path, find_images(tmp_path).good_paths, SPEC, skip_bad=True)
    assert good.paths == tuple(sorted(mixed.values()))
    whole = read_frames(tmp_path, good.paths, SPEC)
    assert np.array_equal(good.frames_u8, whole.frames_u8) and good.sha256 == whole.sha256
    assert [Path(e.problem.split(": ")[0]).name for e in errors] == list(bad)


def test_a_long_list_of_bad_images_is_cut(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{i:02d}.png" for i in range(13)))
    with pytest.raises(DatasetError) as caught:
        read_usable(root, find_images(root).good_paths, SPEC, skip_bad=True)
    assert caught.value.problem.count("damaged") == 10
    assert caught.value.problem.endswith("; and 3 more")
    assert caught.value.remedy == "no usable image is left"


def test_a_region_of_interest_outside_the_picture_names_the_picture(tmp_path: Path, mixed: dict[str, Path]) -> None:
    spec = InputSpec(size_hw=(64, 64), colour_order="rgb", resize="area+linear", roi_xywh=(40, 0, 64, 64))
    with pytest.raises(DatasetError) as caught:
        read_usable(tmp_path, [mixed["colour.png"]], spec, skip_bad=False)
    expected = "the picture is 96x64, the region of interest 64x64 at (40, 0) leaves it"
    assert f"{mixed['colour.png']}: {expected}" in caught.value.problem


@pytest.fixture
def scratched(tmp_path: Path, write_parts: WriteParts) -> LabelledPart:
    root = write_parts(tmp_path / "parts", good=1, scratched=1, size_hw=(64, 96))
    return find_images(root).test_parts[0]


def test_mask_of_a_defect(scratched: LabelledPart) -> None:
    mask = read_part_mask(scratched, SPEC)
    assert mask is not None and mask.dtype == bool
    assert np.array_equal(mask, cv2.imread(str(scratched.mask_paths[0]), cv2.IMREAD_GRAYSCALE) > 127)


def test_mask_follows_the_region_of_interest(scratched: LabelledPart) -> None:
    spec = InputSpec(size_hw=(32, 32), colour_order="rgb", resize="area+linear", roi_xywh=(24, 16, 32, 32))
    whole, cut = read_part_mask(scratched, SPEC), read_part_mask(scratched, spec)
    assert whole is not None and cut is not None and cut.any()
    assert np.array_equal(cut, whole[16:48, 24:56])


def test_good_parts_have_an_empty_mask_and_unmarked_defects_none(scratched: LabelledPart) -> None:
    good = read_part_mask(LabelledPart(path=scratched.path, defect="good"), SPEC)
    assert good is not None and good.shape == SPEC.size_hw and not good.any()
    assert read_part_mask(LabelledPart(path=scratched.path, defect="scratch"), SPEC) is None


def test_mask_of_another_size_than_its_picture(scratched: LabelledPart) -> None:
    cv2.imwrite(str(scratched.mask_paths[0]), np.zeros((64, 64), np.uint8))
    with pytest.raises(ImageError) as caught:
        read_part_mask(scratched, SPEC)
    expected = f"{scratched.mask_paths[0]}: is 64x64, its picture 96x64; make the mask anew or remove it"
    assert str(caught.value) == expected
