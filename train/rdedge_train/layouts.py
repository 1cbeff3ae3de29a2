"""What a data folder holds: recognises the folder forms of the public data sets, and lists parts without reading them.

``plain``       good images, in any folders below
``mvtec``       MVTec AD (Bergmann et al., IJCV 2021): train/good, test/<defect>, ground_truth/<defect>/<name>_mask.png;
                so too VisA converted to one class, whose masks have the picture's name, and MVTec LOCO (Bergmann et
                al., IJCV 2022), where ground_truth/<defect>/<name>/ holds one mask for each fault, whose grey levels
                name its kind, and validation/good holds more good parts
``mvtec-ad-2``  MVTec AD 2 (Heckler-Kram et al., 2025): train/good, validation/good, test_public/good and bad, with
                masks in test_public/ground_truth/bad; the private test parts have no labels and are not looked at
``btad``        BTAD (Mishra et al., ISIE 2021): train/ok, test/ok, test/ko, ground_truth/ko
``visa``        VisA (Zou et al., ECCV 2022) as published: Data/Images/Normal and Anomaly, Data/Masks/Anomaly, of which
                ../split_csv/1cls.csv tells training from test parts; its masks are 0 and the number of a kind
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rdedge.errors import DatasetError
from rdedge.images import IMAGE_SUFFIXES
from rdedge.text import printable

Layout = Literal["plain", "mvtec", "mvtec-ad-2", "btad", "visa"]
GOOD = "good"
SOFT_MASK = 127  # a pixel is defect above it; masks that number kinds of defects are defect above 0
_REMEDY = "name a folder of good images, or one laid out like MVTec AD (train/good, test/<defect>, ground_truth), "
_REMEDY += "MVTec AD 2, MVTec LOCO, BTAD or VisA"
# Folders that say what their parts are, so that the folder above them is not one of good parts only.
_LABELS = {"train", "test", "test_public", "validation", "ground_truth", "data", "split_csv"}
_LABELS |= {"good", "bad", "ok", "ko", "nok", "ng", "normal", "anomaly", "anomalous", "defect", "defects", "defective"}
_VISA_SPLIT = Path("split_csv/1cls.csv")
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPart:
    """A test image: its defect type (``good`` or a folder's name) and its masks; their union, above ``mask_above``."""

    path: Path
    defect: str
    mask_paths: tuple[Path, ...] = ()
    mask_above: int = SOFT_MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a data folder holds. ``layout`` ``plain``: every image is a good part and there is no test part."""

    root: Path
    layout: Layout
    good_paths: tuple[Path, ...]
    test_parts: tuple[LabelledPart, ...]


def find_images(root: Path) -> Dataset:
    """List a data folder without reading the images. Raises DatasetError, for an unknown form with what was found."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", remedy=_REMEDY)
    layout = recognise(root)
    if layout is None:
        types = part_types(root)
        if types:
            named = ", ".join(printable(name) for name in types[:_MOST_NAMED])
            raise DatasetError(
                f"{root}: holds several types of parts ({named})", remedy="name one of them, or train --each of them"
            )
        found = ", ".join(f"{printable(p.name)}/" for p in subfolders(root)[:_MOST_NAMED])
        raise DatasetError(f"{root}: has the folders {found}: none of the known forms", remedy=_REMEDY)
    if layout == "visa":
        good, parts = _visa(root)
    else:
        good, parts = _good_paths(root, layout), _test_parts(root, layout)
    if not good:
        raise DatasetError(f"{root}: holds no good images", remedy=_REMEDY)
    return Dataset(root=root, layout=layout, good_paths=good, test_parts=parts)


def recognise(root: Path) -> Layout | None:
    """The form of a folder that exists; None for an unknown one."""
    if (root / "train" / GOOD).is_dir():
        return "mvtec-ad-2" if (root / "test_public").is_dir() else "mvtec"
    if (root / "train/ok").is_dir():
        return "btad"
    if (root / "Data/Images/Normal").is_dir():
        return "visa"
    folders = [folder for folder in subfolders(root) if not folder.is_symlink()]  # a link may lead upwards
    is_labelled = any(folder.name.lower() in _LABELS for folder in folders)
    return None if is_labelled or any(recognise(folder) != "plain" for folder in folders) else "plain"


def part_types(root: Path) -> list[str]:
    """Names of the folders below, each of which is a data set of one type of parts with a form of its own."""
    return [folder.name for folder in subfolders(root) if recognise(folder) not in (None, "plain")]


def types_below(root: Path) -> list[str]:
    """The same for a command that needs them: at least one, and every one usable. Raises DatasetError."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder", remedy=_REMEDY)
    names = part_types(root)
    if not names:
        raise DatasetError(
            f"{root}: holds no folder of a type of parts laid out like MVTec AD, AD 2, LOCO, BTAD or VisA",
            remedy="name the folder above them; for one type of parts leave out --each",
        )
    for name in names:
        find_images(root / name)
    return names


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in order of name; none where the folder is missing. Raises DatasetError."""
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.relative_to(folder)))
    except OSError as exc:
        raise _unreadable(folder, exc) from exc


def _good_paths(root: Path, layout: Layout) -> tuple[Path, ...]:
    if layout == "plain":
        return _image_files(root)
    good = _image_files(root / "train" / ("ok" if layout == "btad" else GOOD))
    more = root / "validation" / GOOD
    return good + (_image_files(more) if more.is_dir() else ())


def _test_parts(root: Path, layout: Layout) -> tuple[LabelledPart, ...]:
    if layout == "plain":
        return ()
    test, truth = root / "test", root / "ground_truth"
    if layout == "mvtec-ad-2":
        test, truth = root / "test_public", root / "test_public/ground_truth"
    parts: list[LabelledPart] = []
    for folder in subfolders(test):
        if folder != truth:
            defect = GOOD if (layout, folder.name) == ("btad", "ok") else printable(folder.name)
            parts += _labelled(folder, defect, truth / folder.name)
    return tuple(parts)


def _labelled(folder: Path, defect: str, truth: Path) -> list[LabelledPart]:
    """Masks lie below ``truth`` as pictures below ``folder``: by name, with ``_mask`` or without, or in a folder."""
    by_name: dict[Path, Path] = {}
    by_folder: dict[Path, list[Path]] = {}
    if defect != GOOD and truth.is_dir():
        for path in _image_files(truth):
            below = path.relative_to(truth)
            by_name[below.parent / path.stem.removesuffix("_mask")] = path
            by_folder.setdefault(below.parent, []).append(path)
    parts = []
    for path in _image_files(folder):
        place = path.relative_to(folder).with_suffix("")
        if place in by_name:
            parts.append(LabelledPart(path=path, defect=defect, mask_paths=(by_name[place],)))
        else:
            several = tuple(by_folder.get(place, ()))
            parts.append(LabelledPart(path=path, defect=defect, mask_paths=several, mask_above=0))
    return parts


def _visa(root: Path) -> tuple[tuple[Path, ...], tuple[LabelledPart, ...]]:
    """Good training parts and test parts by the published split. Raises DatasetError."""
    path = root.parent / _VISA_SPLIT
    columns = {"object", "split", "label", "image", "mask"}
    try:
        with path.open(newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DatasetError(
            f"{root}: looks like VisA, but {path} cannot be read ({exc})", remedy="keep the folder split_csv beside it"
        ) from exc
    mine = [row for row in rows if row.get("object") == root.name]
    if not mine or any(set(row) != columns or None in row.values() for row in mine):
        raise DatasetError(
            f"{path}: expected the columns {', '.join(sorted(columns))} and rows of {printable(root.name)}",
            remedy="take it from the published archive",
        )
    good = tuple(root.parent / row["image"] for row in mine if row["split"] == "train" and row["label"] == "normal")
    parts = []
    for row in mine:
        if row["split"] == "test":
            masks = (root.parent / row["mask"],) if row["mask"] else ()
            defect = GOOD if row["label"] == "normal" else printable(row["label"])
            parts.append(LabelledPart(path=root.parent / row["image"], defect=defect, mask_paths=masks, mask_above=0))
    for listed in (*good, *(part.path for part in parts)):
        if not listed.is_relative_to(root) or ".." in listed.parts or not listed.is_file():
            raise DatasetError(f"{path}: no such picture: {printable(str(listed))}", remedy="unpack the archive again")
    return tuple(sorted(good)), tuple(sorted(parts, key=lambda part: (part.defect, part.path)))


def _image_files(folder: Path) -> tuple[Path, ...]:
    try:
        next(folder.iterdir(), None)  # rglob says nothing of a folder that may not be read
        files = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return tuple(sorted(p for p in files if not _is_hidden(p.relative_to(folder))))
    except OSError as exc:
        raise _unreadable(folder, exc) from exc


def _is_hidden(path: Path) -> bool:
    """Thumbnails, checkpoints and waste baskets of desktops and editors are no parts."""
    return any(name.startswith(".") for name in path.parts)


def _unreadable(folder: Path, exc: OSError) -> DatasetError:
    return DatasetError(f"{folder}: cannot be read ({exc.strerror})", remedy="check the path and its permissions")
