"""``rdedge import``: another program's weights become a bundle like any other, or nothing does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.images import read_image
from rdedge.inspector import Inspector
from rdedge.preprocess import preprocess
from rdedge_train.data import find_images, read_frames
from rdedge_train.foreign import read_foreign
from rdedge_train.official import official_state

Refused = Callable[..., str]
Copied = Callable[[Path], Path]
LAYOUT = Path(__file__).parents[1] / "data/anomalib/resnet18.json"
SIZE = ["--image-size", "64"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of a genuine anomalib checkpoint."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for key, shape, dtype in json.loads(LAYOUT.read_text())["state_dict"]:
        is_count, is_scale = dtype == "int64", key.endswith(("running_var", "bn1.weight", "bn2.weight"))
        random = torch.randn(shape, generator=generator) * 0.05
        state[key] = torch.tensor(3) if is_count else random.abs() + 0.5 if is_scale else random
    path = tmp_path_factory.mktemp("anomalib") / "model.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"anomaly_map_mode": "add"}}, path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, parts_folder: Path) -> Path:
    """The bundle of it."""
    out = tmp_path_factory.mktemp("imported") / "bundle"
    options = ["--data", str(parts_folder), "--labelled", str(parts_folder), "--false-reject-rate", "0.2", *SIZE]
    assert main(["import", str(checkpoint), "--out", str(out), *options]) == 0
    return out


def test_the_bundle_answers_as_the_checkpoint_does(bundle: Path, checkpoint: Path, parts_folder: Path) -> None:
    detector, _, _ = read_foreign(checkpoint, (64, 64), "imagenet")
    with Inspector.open(bundle) as inspector:
        for path in sorted((parts_folder / "test").rglob("*.png")):
            verdict = inspector.inspect(read_image(path))
            frame = torch.from_numpy(preprocess(read_image(path), inspector.bundle.contract.input))
            expected, score = detector.predict(frame)
            assert np.abs(verdict.anomaly_map - expected[0, 0].numpy()).max() < 1e-4
            assert verdict.score == pytest.approx(float(score[0]), abs=1e-4)


def test_the_contract_says_where_it_comes_from(bundle: Path, checkpoint: Path, parts_folder: Path) -> None:
    contract = open_bundle(bundle).contract
    model, data = contract.model, contract.data
    assert (model.name, model.head, model.ocbe, model.loss) == ("resnet18", "plain", "mff+oce", "flattened")
    assert model.teacher_weights == read_foreign(checkpoint, (64, 64), "imagenet")[2]
    good = find_images(parts_folder).good_paths
    assert (data.train_images, data.held_out_images) == (0, len(good))
    assert data.held_out_sha256 == read_frames(parts_folder, good, contract.input).sha256
    assert data.split == "trained elsewhere; all good images given were held out"
    limit = contract.precisions["fp32"].image_threshold
    assert (limit.parts, limit.target_rate) == (len(good), 0.2)
    metrics = contract.precisions["fp32"].metrics
    assert metrics is not None and metrics.images == 8


def test_the_line_runs_it(bundle: Path, parts_folder: Path, tmp_path: Path) -> None:
    assert main(["run", str(bundle), "--source", str(parts_folder / "test/good"), "--out", str(tmp_path / "out")]) == 0
    assert main(["info", str(bundle)]) == 0


def test_an_official_checkpoint(checkpoint: Path, parts_folder: Path, tmp_path: Path) -> None:
    detector, _, _ = read_foreign(checkpoint, (64, 64), "imagenet")
    path = tmp_path / "wres50_bottle.pth"
    torch.save(official_state(detector.restorer, "resnet18"), path)
    options = ["--data", str(parts_folder), "--teacher-weights", "random:3", "--out", str(tmp_path / "bundle")]
    assert main(["import", str(path), *options, *SIZE]) == 0
    assert open_bundle(tmp_path / "bundle").contract.model.teacher_weights.startswith("random:3 sha256:")


class Payload:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_written_of_what_cannot_be_imported(
    checkpoint: Path, parts_folder: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "bundle"
    common = ["--data", parts_folder, "--out", out, *SIZE]
    hostile, cut, foreign = (tmp_path / f"{name}.ckpt" for name in ("hostile", "cut", "foreign"))
    torch.save({"state_dict": {}, "extra": Payload(tmp_path / "it ran")}, hostile)
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": {"weight": torch.ones(2)}}, foreign)
    expected = {hostile: "it names posix.mkdir, which no checkpoint needs", cut: "not a readable checkpoint"}
    for path, says in (expected | {foreign: "is of neither layout", tmp_path / "gone": "No such file"}).items():
        message = refused("import", path, *common)
        assert says in message and message.startswith(f"rdedge: error: {path}: ")
        assert "pass a checkpoint of the official RD4AD code or of anomalib's" in message
    assert "calibration" in refused("import", checkpoint, *common, "--precision", "int8")
    assert "multiples of 32" in refused("import", checkpoint, *common, "--image-size", "100")
    assert "give a share between 0 and 1" in refused("import", checkpoint, *common, "--false-reject-rate", "2")
    assert "no such folder" in refused("import", checkpoint, "--data", tmp_path / "no", "--out", out, *SIZE)
    assert not out.exists() and not (tmp_path / "it ran").exists()


def test_bad_pictures_are_told_and_left_out_where_asked(
    checkpoint: Path,
    parts_folder: Path,
    copied: Copied,
    tmp_path: Path,
    refused: Refused,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = copied(parts_folder)
    (data / "train/good/000.png").write_bytes(b"")
    command = ["import", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "bundle"), *SIZE]
    assert "train/good/000.png: is empty (0 bytes)" in refused(*command)
    assert main([*command, "--skip-bad"]) == 0
    assert f"skipped {data}/train/good/000.png: is empty (0 bytes)\n" in capfd.readouterr().err
    assert open_bundle(tmp_path / "bundle").contract.data.held_out_images == 11
