"""``rdedge train``: from options to a recorded run, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.cli import main
from rdedge_train.config import TrainConfig
from rdedge_train.run_folder import open_run

WriteParts = Callable[..., Path]
MakeConfig = Callable[..., TrainConfig]

QUICK = ["--epochs", "1", "--image-size", "64"]


@pytest.fixture(scope="module")
def wide_parts(tmp_path_factory: pytest.TempPathFactory, write_parts: WriteParts) -> Path:
    return write_parts(tmp_path_factory.mktemp("data") / "parts", good=5, size_hw=(80, 120))


def recorded(data: Path, out: Path, *options: str) -> TrainConfig:
    assert main(["train", str(data), "--out", str(out), *options]) == 0
    return open_run(out).record.config


def test_defaults_are_the_edge_models(wide_parts: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    assert recorded(wide_parts, tmp_path / "run", *QUICK) == make_config(epochs=1, batch_size=16)


def test_every_option_reaches_the_run(wide_parts: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    options = ["--model", "resnet18", "--epochs", "1", "--image-size", "64x96", "--roi", "10, 5,100,70"]
    options += ["--batch-size", "3", "--learning-rate", "0.002", "--seed", "4", "--held-out", "0.4"]
    options += ["--loss", "per-position", "--ocbe", "oce", "--head", "position", "--teacher-weights", "random:2"]
    spec = {"size_hw": (64, 96), "colour_order": "rgb", "resize": "area+linear", "roi_xywh": (10, 5, 100, 70)}
    assert recorded(wide_parts, tmp_path / "run", *options) == make_config(
        model="resnet18",
        input=spec,
        ocbe="oce",
        loss="per-position",
        head="position",
        epochs=1,
        batch_size=3,
        learning_rate=0.002,
        seed=4,
        held_out_share=0.4,
        teacher_weights="random:2",
    )


@pytest.mark.parametrize(
    ("text", "size_hw"), [("64", (64, 64)), ("32x64", (32, 64)), ("64X32", (64, 32))], ids=["side", "hxw", "capital"]
)
def test_image_size(wide_parts: Path, tmp_path: Path, text: str, size_hw: tuple[int, int]) -> None:
    config = recorded(wide_parts, tmp_path / "run", "--epochs", "1", "--image-size", text)
    assert config.input.size_hw == size_hw


def test_says_what_was_done_and_what_comes_next(
    wide_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    recorded(wide_parts, out, *QUICK)
    loss = open_run(out).history[-1].loss
    first = capsys.readouterr().out
    assert first == (
        f"trained edge-lite0: 1 epochs, loss {loss:.4f}; run in {out}\nnext: rdedge export {out} --out BUNDLE\n"
    )
    recorded(wide_parts, out, *QUICK)
    again = capsys.readouterr()
    assert (again.out, again.err) == (first, "")


def test_help_names_every_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # names are broken at their hyphens where it is narrow
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "one of edge-lite0, edge-lite1, edge-lite2, resnet18, resnet50, wide_resnet50_2" in text
