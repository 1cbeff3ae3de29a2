"""Hostile input to every verb of the lab: one line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rdedge_train.run_folder import WEIGHTS_FILE

Refused = Callable[..., str]
Copied = Callable[[Path], Path]
Snapshot = Callable[[Path], dict[str, str]]
DrawWasher = Callable[..., NDArray[np.uint8]]
Spoil = Callable[[Path], object]

CMYK_FRAME = b"\xff\xd8\xff\xc0\x00\x14\x08\x00\x40\x00\x40\x04" + bytes(12)  # a header of four components


def write_png(path: Path, image: NDArray[np.generic]) -> None:
    assert cv2.imwrite(str(path), image)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_jpeg(path: Path, keep_bytes: int | None = None) -> None:
    encoded = cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes()
    path.with_suffix(".jpg").write_bytes(encoded[:keep_bytes])


def as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere.png"))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


IMAGES: dict[str, tuple[Spoil, str]] = {
    "truncated PNG": (cut_in_half, "000.png: truncated PNG"),
    "truncated JPEG": (lambda p: as_jpeg(p, 900), "000.jpg: truncated or damaged JPEG"),
    "0 bytes": (lambda p: p.write_bytes(b""), "000.png: is empty (0 bytes)"),
    "1x1": (lambda p: write_png(p, np.zeros((1, 1, 3), np.uint8)), "000.png: is 1x1, expected at least 16 pixels"),
    "30000x10": (lambda p: write_png(p, np.zeros((10, 30000), np.uint8)), "000.png: is 30000x10, expected"),
    "16 bits": (lambda p: write_png(p, np.zeros((64, 64, 3), np.uint16)), "000.png: has 16 bits per channel"),
    "CMYK": (lambda p: p.with_suffix(".jpg").write_bytes(CMYK_FRAME), "000.jpg: is a CMYK JPEG"),
    "alpha": (lambda p: write_png(p, np.zeros((64, 64, 4), np.uint8)), "000.png: has an alpha channel"),
    "text": (lambda p: p.write_text("Lorem ipsum dolor sit amet"), "000.png: damaged, or not an image format"),
    "dangling link": (as_link, "000.png: cannot be read (No such file or directory)"),
    "folder of an image's name": (as_folder, "000.png: is not a file"),
    "named pipe": (as_pipe, "000.png: is not a file"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_training_refuses_images(
    parts_folder: Path, copied: Copied, tmp_path: Path, refused: Refused, kind: str
) -> None:
    data = copied(parts_folder)
    spoil, complaint = IMAGES[kind]
    spoil(data / "train/good/000.png")
    message = refused("train", data, "--out", tmp_path / "run")
    assert message.startswith("rdedge: error: 1 of 1")  # of 12, or of 13 where a JPEG was added
    assert complaint in message
    assert "(--skip-bad goes on without bad images)" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", IMAGES)
def test_evaluation_refuses_images(
    tiny_bundle: Path, parts_folder: Path, copied: Copied, tmp_path: Path, refused: Refused, kind: str
) -> None:
    data = copied(parts_folder)
    spoil, complaint = IMAGES[kind]
    spoil(data / "test/good/000.png")
    message = refused("evaluate", tiny_bundle, data, "--json", tmp_path / "figures.json")
    assert complaint in message
    assert not (tmp_path / "figures.json").exists()


MASKS: dict[str, tuple[Spoil, str]] = {
    "truncated": (cut_in_half, "000_mask.png: truncated PNG"),
    "other size": (lambda p: write_png(p, np.zeros((64, 65), np.uint8)), "000_mask.png: is 65x64, its picture 64x64"),
    "alpha": (lambda p: write_png(p, np.zeros((64, 64, 4), np.uint8)), "000_mask.png: has an alpha channel"),
    "0 bytes": (lambda p: p.write_bytes(b""), "000_mask.png: is empty"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_evaluation_refuses_masks(
    tiny_bundle: Path, parts_folder: Path, copied: Copied, refused: Refused, kind: str
) -> None:
    data = copied(parts_folder)
    spoil, complaint = MASKS[kind]
    spoil(data / "ground_truth/scratch/000_mask.png")
    message = refused("evaluate", tiny_bundle, data)
    assert complaint in message
    assert "(--skip-bad goes on without it)" in message


OPTIONS = [
    ("--image-size", "0", "Expected `int` >= 32"),
    ("--image-size", "63", "image size 63x63; use multiples of 32 pixels"),
    ("--image-size", "8192", "Expected `int` <= 4096"),
    ("--image-size", "64x", "--image-size 64x; give one number or HEIGHTxWIDTH"),
    ("--image-size", "64x64x3", "--image-size 64x64x3; give one number"),
    ("--image-size", "-64", "--image-size -64; give one number"),
    ("--image-size", "6e1", "--image-size 6e1; give one number"),
    ("--image-size", "9" * 5000, "give one number or HEIGHTxWIDTH"),
    ("--roi", "1,2,3", "--roi 1,2,3; give X,Y,W,H in source pixels"),
    ("--roi", "0,0,-5,40", "--roi 0,0,-5,40; give X,Y,W,H"),
    ("--roi", "0,0,16,16", "Expected `int` >= 32"),
    ("--roi", "9" * 5000 + ",0,40,40", "give X,Y,W,H"),
    ("--roi", "1,0,64,64", "the picture is 64x64, the region of interest 64x64 at (1, 0) leaves it"),
    ("--roi", "0,33,32,32", "the region of interest 32x32 at (0, 33) leaves it"),
    ("--epochs", "0", "Expected `int` >= 1"),
    ("--epochs", "ten", "argument --epochs: invalid int value: 'ten'"),
    ("--epochs", "1" + "0" * 30, "Expected `int` <= 1000000"),
    ("--batch-size", "0", "Expected `int` >= 1"),
    ("--batch-size", "-4", "Expected `int` >= 1"),
    ("--batch-size", "9" * 400, "Expected `int` <= 1000000"),
    ("--learning-rate", "0", "Expected `float` > 0.0"),
    ("--learning-rate", "nan", "Expected `float` > 0.0"),
    ("--learning-rate", "inf", "Expected `float` <= 10.0"),
    ("--seed", "-1", "Expected `int` >= 0"),
    ("--seed", "9" * 30, "Expected `int` <= 9223372036854775807"),
    ("--held-out", "0", "Expected `float` > 0.0"),
    ("--held-out", "1", "Expected `float` < 1.0"),
    ("--held-out", "nan", "Expected `float` > 0.0"),
    ("--model", "resnet19", "no model 'resnet19'; use one of: edge-lite0"),
    ("--loss", "mse", "argument --loss: invalid choice: 'mse'"),
    ("--teacher-weights", "nowhere.pth", "nowhere.pth: no such weight file"),
    ("--teacher-weights", "random:x", "random:x: expected random:SEED"),
    ("--made-up", "1", "unrecognized arguments: --made-up=1"),
]


@pytest.mark.parametrize(("option", "value", "complaint"), OPTIONS, ids=[f"{o}={v[:12]}" for o, v, _ in OPTIONS])
def test_training_refuses_options(
    parts_folder: Path, tmp_path: Path, refused: Refused, option: str, value: str, complaint: str
) -> None:
    message = refused("train", parts_folder, "--out", tmp_path / "run", f"{option}={value}")
    assert complaint in message
    assert os.listdir(tmp_path) == []


DATA_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "no such folder"),
    "file": (lambda p: p.write_bytes(b""), "no such folder"),
    "dangling link": (lambda p: p.symlink_to("nowhere"), "no such folder"),
    "empty": (lambda p: p.mkdir(), "holds no good images"),
    "no images": (lambda p: (p.mkdir(), (p / "a.txt").write_bytes(b"")), "holds no good images"),
    "empty train/good": (lambda p: (p / "train/good").mkdir(parents=True), "holds no good images"),
    "test without train/good": (lambda p: (p / "test/good").mkdir(parents=True), "has the folders test/: none of"),
}


@pytest.mark.parametrize("kind", DATA_FOLDERS)
@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_data_folders(
    tiny_run: Path, tiny_bundle: Path, tmp_path: Path, refused: Refused, snapshot: Snapshot, verb: str, kind: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make, complaint = DATA_FOLDERS[kind]
    make(data)
    before = snapshot(tmp_path)
    commands = {
        "train": ["train", data, "--out", out],
        "evaluate": ["evaluate", tiny_bundle, data, "--report", out],
        "export": ["export", tiny_run, "--out", out, "--labelled", data],
    }
    assert f"{data}: {complaint}" in refused(*commands[verb])
    assert snapshot(tmp_path) == before
    assert not out.exists()


def test_a_single_good_part(tmp_path: Path, refused: Refused, draw_washer: DrawWasher) -> None:
    (tmp_path / "data").mkdir()
    write_png(tmp_path / "data/a.png", draw_washer(0))
    message = refused("train", tmp_path / "data", "--out", tmp_path / "run")
    assert "data: 1 good image, training and threshold need at least one each; collect more good parts" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["file", "foreign folder", "below a file"])
def test_training_into_what_is_not_a_run(
    parts_folder: Path, tmp_path: Path, refused: Refused, snapshot: Snapshot, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "foreign folder":
        out.mkdir()
        (out / "photo.jpg").write_bytes(b"precious")
    else:
        out.write_bytes(b"precious")
    before = snapshot(tmp_path)
    message = refused("train", parts_folder, "--out", out / "run" if kind == "below a file" else out)
    expected = {"file": "is not a folder", "foreign folder": "is not empty and not a run", "below a file": "directory"}
    assert expected[kind] in message
    assert snapshot(tmp_path) == before


RUNS: dict[str, tuple[Spoil, str]] = {
    "NaN weights": (
        lambda p: spoil_weights(p, lambda t: t["restorer.bottleneck.coarse.0.weight"].fill_(torch.nan)),
        "weights.safetensors: restorer.bottleneck.coarse.0.weight holds NaN or infinity",
    ),
    "truncated weights": (lambda p: cut_in_half(p / WEIGHTS_FILE), "weights.safetensors: damaged or not ours"),
    "foreign weights": (
        lambda p: save_file({"x": torch.zeros(1)}, p / WEIGHTS_FILE),
        "weights.safetensors: damaged or not ours",
    ),
    "unfinished": (lambda p: (p / WEIGHTS_FILE).unlink(), "training is not finished (weights.safetensors is missing)"),
    "edited record": (lambda p: (p / "run.json").write_text('{"config": 1}'), "run.json: Expected `object`, got `int`"),
    "cut held-out parts": (lambda p: cut_in_half(p / "held_out.npy"), "held_out.npy: cannot be read"),
}


def spoil_weights(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(run / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, run / WEIGHTS_FILE, {"history": "[]"})


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("verb", ["export", "evaluate"])
def test_damaged_runs(
    tiny_run: Path, parts_folder: Path, copied: Copied, tmp_path: Path, refused: Refused, verb: str, kind: str
) -> None:
    run, out = copied(tiny_run), tmp_path / "out"
    spoil, complaint = RUNS[kind]
    spoil(run)
    command = ["export", run, "--out", out] if verb == "export" else ["evaluate", run, parts_folder, "--json", out]
    assert complaint in refused(*command)
    assert os.listdir(tmp_path) == [run.name]


def test_exporting_over_what_is_there(tiny_run: Path, tiny_bundle: Path, refused: Refused, snapshot: Snapshot) -> None:
    before = snapshot(tiny_bundle)
    message = refused("export", tiny_run, "--out", tiny_bundle)
    assert message == f"rdedge: error: {tiny_bundle} already exists; name another folder or remove it first\n"
    assert snapshot(tiny_bundle) == before


@pytest.mark.parametrize("kind", ["missing", "file", "folder", "bundle"])
def test_exporting_what_is_not_a_run(tiny_bundle: Path, tmp_path: Path, refused: Refused, kind: str) -> None:
    run = tiny_bundle if kind == "bundle" else tmp_path / "run"
    if kind == "file":
        run.write_bytes(b"")
    elif kind == "folder":
        run.mkdir()
    message = refused("export", run, "--out", tmp_path / "bundle")
    assert f"{run}/run.json: cannot be read (" in message
    assert "name a folder that `rdedge train --out` made" in message
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", ["missing", "file", "folder", "data"])
def test_evaluating_neither_run_nor_bundle(parts_folder: Path, tmp_path: Path, refused: Refused, kind: str) -> None:
    path = parts_folder if kind == "data" else tmp_path / "thing"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    message = refused("evaluate", path, parts_folder)
    assert message.startswith(f"rdedge: error: {path}: neither a run nor a bundle; name a folder made by")


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_labelled_folder_without_test_parts(
    tiny_run: Path, tiny_bundle: Path, parts_folder: Path, copied: Copied, tmp_path: Path, refused: Refused, verb: str
) -> None:
    data = copied(parts_folder)
    (data / "test").rename(data / "tests")
    command = ["evaluate", tiny_bundle, data]
    if verb == "export":
        command = ["export", tiny_run, "--out", tmp_path / "bundle", "--labelled", data]
    message = refused(*command)
    assert message == f"rdedge: error: {data}: has no test parts; add test/good and test/<defect> folders\n"
    assert not (tmp_path / "bundle").exists()


def test_an_altered_bundle(tiny_bundle: Path, parts_folder: Path, copied: Copied, refused: Refused) -> None:
    bundle = copied(tiny_bundle)
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[-1] ^= 1
    (bundle / "model.onnx").write_bytes(graph)
    assert "model.onnx: altered or incomplete" in refused("evaluate", bundle, parts_folder)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_the_bundle_lacks(tiny_bundle: Path, parts_folder: Path, refused: Refused, precision: str) -> None:
    message = refused("evaluate", tiny_bundle, parts_folder, "--precision", precision)
    assert f"has no {precision} graph (it has: fp32)" in message


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_missing_arguments(refused: Refused, verb: str) -> None:
    assert "the following arguments are required: " in refused(verb)
