"""Checkpoints in the official layout: what we write the official code loads, and a bad file is refused, never run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdedge.errors import WeightsError
from rdedge_train.model import Restorer
from rdedge_train.official import load_official, official_state
from rdedge_train.paper import RESNETS

GOLDEN = Path(__file__).parents[1] / "data" / "rd4ad_golden"
REMEDY = "pass a checkpoint of the official RD4AD code or of anomalib's ReverseDistillation"


def built(model: str, seed: int = 0) -> Restorer:
    """A restorer whose buffers are as random as its weights, so that no tensor equals another by default."""
    torch.manual_seed(seed)
    restorer = Restorer(model, RESNETS[model].level_channels[:3], "mff+oce")
    for buffer in restorer.buffers():
        if buffer.dtype == torch.int64:
            buffer.fill_(seed + 7)
        else:
            buffer.uniform_(0.5, 1.5)
    return restorer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "resnet18.pth"
    torch.save(official_state(built("resnet18"), "resnet18"), path)
    return path


@pytest.mark.parametrize("model", RESNETS)
def test_layout_is_what_the_official_code_loads_strictly(model: str) -> None:
    with torch.device("meta"):  # names and shapes only
        state = official_state(Restorer(model, RESNETS[model].level_channels[:3], "mff+oce"), model)
    expected = json.loads((GOLDEN / f"{model}.json").read_text())["keys"]
    assert list(state) == ["bn", "decoder"]
    for part, tensors in state.items():
        ours = {key: (list(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in tensors.items()}
        assert ours == {key: (shape, dtype) for key, shape, dtype, _ in expected[part]}


def test_written_file_holds_plain_tensors_in_the_official_parts(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    assert {name: type(part) for name, part in state.items()} == {"bn": dict, "decoder": dict}
    assert all(isinstance(tensor, Tensor) for part in state.values() for tensor in part.values())


def test_round_trip_is_equal_to_the_bit(checkpoint: Path) -> None:
    loaded, written = built("resnet18", seed=1), built("resnet18")
    assert any(not torch.equal(a, b) for a, b in zip(loaded.parameters(), written.parameters(), strict=True))
    load_official(loaded, checkpoint)
    expected = written.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_memory_keys_are_dropped_as_the_official_test_script_does(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["bn"]["memory0.units"] = torch.ones(3)
    torch.save(state, tmp_path / "with_memory.pth")
    loaded = built("resnet18", seed=1)
    load_official(loaded, tmp_path / "with_memory.pth")
    assert torch.equal(loaded.bottleneck.get_parameter("conv1.weight"), state["bn"]["conv1.weight"])


def test_an_ablation_has_no_official_layout() -> None:
    restorer = Restorer("resnet18", RESNETS["resnet18"].level_channels, "oce")
    with pytest.raises(ValueError, match="only the full bottleneck"):
        official_state(restorer, "resnet18")


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def drop(state: dict[str, Any]) -> dict[str, Any]:
        part = state
        for name in names[:-1]:
            part = part[name]
        del part[names[-1]]
        return state

    return drop


def with_nan(state: dict[str, Any]) -> dict[str, Any]:
    state["bn"]["conv1.weight"][0, 0, 0, 0] = float("nan")
    return state


def with_stranger(state: dict[str, Any]) -> dict[str, Any]:
    state["bn"]["extra"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(without("bn"), "expected the keys bn and decoder", id="no bn"),
        pytest.param(without("decoder"), "expected the keys bn and decoder", id="no decoder"),
        pytest.param(lambda state: list(state.values()), "expected the keys bn and decoder", id="a list"),
        pytest.param(lambda state: state | {"bn": 3}, "expected the keys bn and decoder", id="bn is a number"),
        pytest.param(without("bn", "conv1.weight"), "bn lacks conv1.weight", id="a bn tensor missing"),
        pytest.param(with_nan, "bn has NaN or infinity in conv1.weight", id="NaN"),
        pytest.param(with_stranger, "bn has extra, which the model has not", id="an unknown tensor"),
        pytest.param(
            without("decoder", "layer1.0.conv1.weight"),
            "decoder lacks layer1.0.conv1.weight",
            id="a decoder tensor missing",
        ),
    ],
)
def test_wrong_contents_are_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "damaged.pth"
    torch.save(damage(torch.load(checkpoint, weights_only=True)), path)
    restorer = built("resnet18")
    before = {key: value.clone() for key, value in restorer.state_dict().items()}
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}: .*{message}.*; {REMEDY}"):
        load_official(restorer, path)
    assert all(torch.equal(before[key], value) for key, value in restorer.state_dict().items())  # nothing half-filled


def test_checkpoint_of_another_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=rf"resnet18\.pth: (bn|decoder) (has|lacks) .*; {REMEDY}"):
        load_official(built("resnet50"), checkpoint)


@pytest.mark.parametrize("kept_bytes", [0, 100, 1_000_000], ids="{} bytes".format)
def test_truncated_file_is_refused(checkpoint: Path, tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:kept_bytes])
    with pytest.raises(WeightsError, match=r"cut\.pth: not a readable checkpoint \(.+\); " + REMEDY):
        load_official(built("resnet18"), path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth: not a readable checkpoint \(.*No such file"):
        load_official(built("resnet18"), tmp_path / "absent.pth")


class MakesFolder:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_arbitrary_object_in_the_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "payload.pth", tmp_path / "the payload ran"
    torch.save({"bn": {}, "decoder": {}, "extra": MakesFolder(trace)}, path)
    with pytest.raises(WeightsError, match=r"payload\.pth: not a readable checkpoint"):
        load_official(built("resnet18"), path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # shows that the payload was live
    assert trace.exists()
