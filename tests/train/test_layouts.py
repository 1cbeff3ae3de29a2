"""The folder forms of the public data sets, each built small as its publishers describe it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge.errors import DatasetError
from rdedge_train.data import read_part_mask, union_of_masks
from rdedge_train.layouts import Dataset, LabelledPart, find_images, part_types, recognise

SIZE_HW = (40, 64)
SPEC = InputSpec(size_hw=SIZE_HW, colour_order="rgb", resize="area+linear", roi_xywh=None)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*SIZE_HW, 3), 128, np.uint8))


def mask(path: Path, grey: int, columns: slice = slice(10, 20)) -> None:
    image = np.zeros(SIZE_HW, np.uint8)
    image[5:15, columns] = grey
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def area(part: LabelledPart) -> int:
    marked = read_part_mask(part, SPEC)
    assert marked is not None
    return int(marked.sum())


def listed(dataset: Dataset) -> list[tuple[str, str, list[str]]]:
    """Test parts with their defect and masks, by names below the root's parent."""
    top = dataset.root.parent
    return [
        (p.path.relative_to(top).as_posix(), p.defect, [m.relative_to(top).as_posix() for m in p.mask_paths])
        for p in dataset.test_parts
    ]


def test_visa_as_published(tmp_path: Path) -> None:
    """github.com/amazon-science/spot-diff: a folder an object, and split_csv/1cls.csv over all of them."""
    root = tmp_path / "visa"
    rows = ["object,split,label,image,mask"]
    for number in range(3):
        picture(root / f"candle/Data/Images/Normal/{number:04d}.JPG")
        split = "test" if number == 2 else "train"
        rows.append(f"candle,{split},normal,candle/Data/Images/Normal/{number:04d}.JPG,")
    picture(root / "candle/Data/Images/Anomaly/000.JPG")
    mask(root / "candle/Data/Masks/Anomaly/000.png", grey=3)  # the number of a kind of defect
    rows.append("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png")
    rows.append("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    dataset = find_images(root / "candle")
    assert dataset.layout == "visa"
    assert [p.name for p in dataset.good_paths] == ["0000.JPG", "0001.JPG"]
    assert listed(dataset) == [
        ("candle/Data/Images/Anomaly/000.JPG", "anomaly", ["candle/Data/Masks/Anomaly/000.png"]),
        ("candle/Data/Images/Normal/0002.JPG", "good", []),
    ]
    assert area(dataset.test_parts[0]) == 100
    assert part_types(root) == ["candle"]
    with pytest.raises(DatasetError, match=r"visa: holds several types of parts \(candle\); name one of them"):
        find_images(root)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "looks like VisA, but .*1cls.csv cannot be read .*; keep the folder split_csv beside it"),
        (b"\xff\xfe", "looks like VisA, but .*1cls.csv cannot be read"),
        (b"object,split\ncandle,train\n", "1cls.csv: expected the columns image, label, mask, object, split and rows"),
        (
            b"object,split,label,image,mask\npcb1,train,normal,x.JPG,\n",
            "and rows of candle; take it from the published",
        ),
        (b"object,split,label,image,mask\ncandle,train,normal\n", "expected the columns"),
        (b"object,split,label,image,mask\ncandle,train,normal,candle/x.JPG,\n", "no such picture: .*candle/x.JPG"),
        (b"object,split,label,image,mask\ncandle,train,normal,candle/../x.JPG,\n", "no such picture"),
        (b"object,split,label,image,mask\ncandle,train,normal,/etc/passwd,\n", "no such picture: /etc/passwd"),
    ],
    ids=["missing", "not text", "other columns", "other object", "short row", "gone", "upwards", "elsewhere"],
)
def test_visa_with_another_split_file(tmp_path: Path, content: bytes | None, says: str) -> None:
    picture(tmp_path / "candle/Data/Images/Normal/0000.JPG")
    picture(tmp_path / "x.JPG")
    (tmp_path / "split_csv").mkdir()
    if content is not None:
        (tmp_path / "split_csv/1cls.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=says):
        find_images(tmp_path / "candle")


def test_visa_converted_to_one_class(tmp_path: Path) -> None:
    """prepare_data.py of the same repository: train/good, test/good and bad, masks of the picture's name."""
    root = tmp_path / "candle"
    picture(root / "train/good/0001.JPG")
    picture(root / "test/good/0002.JPG")
    picture(root / "test/bad/000.JPG")
    mask(root / "ground_truth/bad/000.png", grey=255)
    dataset = find_images(root)
    assert dataset.layout == "mvtec"
    assert listed(dataset) == [
        ("candle/test/bad/000.JPG", "bad", ["candle/ground_truth/bad/000.png"]),
        ("candle/test/good/0002.JPG", "good", []),
    ]
    assert area(dataset.test_parts[0]) == 100


@pytest.mark.parametrize("mask_suffix", [".png", ".bmp"])
def test_btad(tmp_path: Path, mask_suffix: str) -> None:
    """github.com/pankajmishra000/VT-ADL: folders ok and ko; pictures .bmp or .png, masks of the same name."""
    root = tmp_path / "03"
    picture(root / "train/ok/0000.bmp")
    picture(root / "test/ok/0001.bmp")
    picture(root / "test/ko/0002.bmp")
    mask(root / f"ground_truth/ko/0002{mask_suffix}", grey=255)
    dataset = find_images(root)
    assert dataset.layout == "btad"
    assert [p.name for p in dataset.good_paths] == ["0000.bmp"]
    assert listed(dataset) == [
        ("03/test/ko/0002.bmp", "ko", [f"03/ground_truth/ko/0002{mask_suffix}"]),
        ("03/test/ok/0001.bmp", "good", []),
    ]
    assert area(dataset.test_parts[0]) == 100


def test_mvtec_ad_2(tmp_path: Path) -> None:
    """www.mvtec.com/company/research/datasets/mvtec-ad-2: masks below test_public; the private parts are unlabelled."""
    root = tmp_path / "can"
    picture(root / "train/good/000_regular.png")
    picture(root / "validation/good/000_regular.png")
    picture(root / "test_public/good/000_overexposed.png")
    picture(root / "test_public/bad/000_shift_1.png")
    mask(root / "test_public/ground_truth/bad/000_shift_1_mask.png", grey=255)
    picture(root / "test_private/000_mixed.png")
    picture(root / "test_private_mixed/000_mixed.png")
    dataset = find_images(root)
    assert dataset.layout == "mvtec-ad-2"
    assert [p.relative_to(root).parts[0] for p in dataset.good_paths] == ["train", "validation"]
    assert listed(dataset) == [
        ("can/test_public/bad/000_shift_1.png", "bad", ["can/test_public/ground_truth/bad/000_shift_1_mask.png"]),
        ("can/test_public/good/000_overexposed.png", "good", []),
    ]


def test_mvtec_loco(tmp_path: Path) -> None:
    """www.mvtec.com/company/research/datasets/mvtec-loco: a folder of masks a picture, grey levels by kind of fault."""
    root = tmp_path / "pushpins"
    picture(root / "train/good/000.png")
    picture(root / "validation/good/000.png")
    for defect in ("logical_anomalies", "structural_anomalies"):
        for name in ("000", "001"):
            picture(root / f"test/{defect}/{name}.png")
            mask(root / f"ground_truth/{defect}/{name}/000.png", grey=254)
    mask(root / "ground_truth/logical_anomalies/001/001.png", grey=90, columns=slice(15, 40))
    dataset = find_images(root)
    assert len(dataset.good_paths) == 2
    truth = "pushpins/ground_truth/logical_anomalies"
    assert [masks for _, _, masks in listed(dataset)][:2] == [
        [f"{truth}/000/000.png"],
        [f"{truth}/001/000.png", f"{truth}/001/001.png"],
    ]
    assert [p.defect for p in dataset.test_parts] == ["logical_anomalies"] * 2 + ["structural_anomalies"] * 2
    assert [area(p) for p in dataset.test_parts] == [100, 300, 100, 100]  # the union; also of pale masks
    union: NDArray[np.uint8] | None = union_of_masks(dataset.test_parts[1])
    assert union is not None and set(np.unique(union)) == {0, 255}


def test_soft_masks_of_mvtec_are_defect_above_half(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.png")
    picture(tmp_path / "test/crack/0.png")
    mask(tmp_path / "ground_truth/crack/0_mask.png", grey=127)
    assert area(find_images(tmp_path).test_parts[0]) == 0


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (["good", "bad"], "has the folders bad/, good/: none of the known forms"),
        (["OK", "NG", "notes"], "has the folders NG/, OK/, notes/: none"),
        (["monday/good", "monday/defect"], "has the folders monday/: none"),
        (["train", "test"], "has the folders test/, train/: none"),
        (["train/normal", "test/good"], "has the folders test/, train/: none"),
    ],
)
def test_an_unknown_form_is_told_and_not_taken_for_good_parts(tmp_path: Path, folders: list[str], found: str) -> None:
    for folder in folders:
        picture(tmp_path / folder / "0.png")
    with pytest.raises(DatasetError) as caught:
        find_images(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: {found}")
    assert (
        "laid out like MVTec AD (train/good, test/<defect>, ground_truth), MVTec AD 2, MVTec LOCO, BTAD or VisA"
        in str(caught.value)
    )


def test_several_types_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "bolt/train/good/0.png")
    picture(tmp_path / "nut/train/ok/0.png")
    picture(tmp_path / "notes/0.png")
    assert recognise(tmp_path) is None
    assert part_types(tmp_path) == ["bolt", "nut"]
    with pytest.raises(DatasetError, match=r"holds several types of parts \(bolt, nut\); name one of them, or train"):
        find_images(tmp_path)


def test_a_link_upwards_has_an_end(tmp_path: Path) -> None:
    picture(tmp_path / "monday/0.png")
    (tmp_path / "monday/again").symlink_to(tmp_path)
    assert find_images(tmp_path).layout == "plain"
