"""Other programs' checkpoints: anomalib's layouts are read to the right places, and nothing in a file is run.

``tests/data/anomalib`` has the names and shapes of genuine checkpoints.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdedge_train.foreign
from rdedge.errors import WeightsError
from rdedge_train.checkpoint_file import Inert, module_state, read_checkpoint
from rdedge_train.foreign import read_foreign
from rdedge_train.official import official_state
from rdedge_train.teachers import state_sha256

LAYOUTS = Path(__file__).parents[1] / "data/anomalib"
SIZE_HW = (64, 64)
REMEDY = "pass a checkpoint of the official RD4AD code or of anomalib's ReverseDistillation"
State = dict[str, Any]


def genuine_state(model: str, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers under the names and shapes of a genuine Lightning checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape, dtype in json.loads((LAYOUTS / f"{model}.json").read_text())["state_dict"]:
        if dtype == "int64":
            state[key] = torch.tensor(3)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.05
    return state


class Mode(Enum):
    """Stands in for anomalib's enumeration when a file is written."""

    ADD = "add"
    MULTIPLY = "multiply"


class Module(nn.Module):
    """Any module of theirs when a file is written."""


ANOMALIB = "anomalib.models.image.reverse_distillation"
for one, name in ((Mode, "AnomalyMapGenerationMode"), (Module, "ReverseDistillation")):
    one.__module__, one.__qualname__, one.__name__ = ANOMALIB, name, name


def lightning(state: State, mode: object) -> State:
    settings = {"backbone": "resnet18", "layers": ("layer1", "layer2", "layer3"), "anomaly_map_mode": mode}
    return {"epoch": 0, "state_dict": state, "callbacks": {}, "optimizer_states": [], "hyper_parameters": settings}


def exported(state: dict[str, Tensor], mode: object) -> State:
    """A whole module with these tensors, as anomalib's torch export pickles it."""
    root = Module()
    for key, value in state.items():
        *path, last = key.split(".")
        module: nn.Module = root
        for step in path:
            if step not in module._modules:
                module.add_module(step, Module())
            inner = module._modules[step]
            assert inner is not None
            module = inner
        if value.is_floating_point() and not last.startswith("running_"):
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(last, value)
    root.anomaly_map_mode = mode
    return {"model": root}


def saved(path: Path, what: object) -> Path:
    """Written while the stand-ins can be found under anomalib's names; afterwards no such module can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for package in itertools.accumulate(ANOMALIB.split("."), "{}.{}".format):
            patch.setitem(sys.modules, package, types.ModuleType(package))
        patch.setattr(sys.modules[ANOMALIB], "AnomalyMapGenerationMode", Mode, raising=False)
        patch.setattr(sys.modules[ANOMALIB], "ReverseDistillation", Module, raising=False)
        torch.save(what, path)
    return path


@pytest.mark.parametrize("form", ["lightning", "exported", "state dict", "bare state dict"])
def test_every_tensor_of_anomalib_is_in_its_place(tmp_path: Path, form: str) -> None:
    state = genuine_state("resnet18")
    bare = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    contents = {
        "lightning": lambda: lightning(state, Mode.ADD),
        "exported": lambda: exported(state, Mode.ADD),
        "state dict": lambda: state,
        "bare state dict": lambda: bare,
    }
    path = saved(tmp_path / "model.ckpt", contents[form]())
    detector, model, teacher = read_foreign(path, SIZE_HW, "imagenet")
    assert model == "resnet18"
    for ours, theirs in (
        (detector.teacher.encoder, "model.encoder.feature_extractor."),
        (detector.restorer.bottleneck, "model.bottleneck."),
        (detector.restorer.student, "model.decoder."),
    ):
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, state[theirs + key]), key
    assert teacher == f"model.ckpt sha256:{state_sha256(detector.teacher.state_dict())}"
    assert "anomalib" not in {name.partition(".")[0] for name in sys.modules}, "nothing of theirs was imported"


def test_anomalibs_wide_network_has_a_narrow_bottleneck(tmp_path: Path) -> None:
    state = genuine_state("wide_resnet50_2")
    detector, model, _ = read_foreign(saved(tmp_path / "wide.ckpt", lightning(state, "add")), SIZE_HW, "imagenet")
    assert model == "wide_resnet50_2"
    for key, tensor in detector.restorer.bottleneck.state_dict().items():
        assert torch.equal(tensor, state[f"model.bottleneck.{key}"]), key
    anomaly_map, score = detector.predict(torch.zeros((1, *SIZE_HW, 3), dtype=torch.uint8))
    assert anomaly_map.shape == (1, 1, *SIZE_HW) and torch.isfinite(score).all()


def test_an_official_checkpoint_needs_a_teacher(tmp_path: Path) -> None:
    source, _, _ = read_foreign(saved(tmp_path / "a.ckpt", genuine_state("resnet18")), SIZE_HW, "imagenet")
    path = saved(tmp_path / "official.pth", official_state(source.restorer, "resnet18"))
    detector, model, teacher = read_foreign(path, SIZE_HW, "random:4")
    assert model == "resnet18"
    assert teacher.startswith("random:4 sha256:")
    assert state_sha256(detector.restorer.state_dict()) == state_sha256(source.restorer.state_dict())


@pytest.mark.parametrize("form", [lightning, exported])
@pytest.mark.parametrize("mode", [Mode.MULTIPLY, "multiply"])
def test_multiplied_maps_are_refused(tmp_path: Path, form: Callable[[State, object], State], mode: object) -> None:
    path = saved(tmp_path / "model.ckpt", form({"model.decoder.x": torch.ones(1)}, mode))
    with pytest.raises(WeightsError, match=r"multiplies the levels' maps \(anomaly_map_mode 'multiply'\), rdedge sums"):
        read_foreign(path, SIZE_HW, "imagenet")


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def changed(key: str, value: object) -> Callable[[State], State]:
    return lambda state: state | {key: value}


FIRST = "model.decoder.layer1.0.conv1.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without("model.bottleneck.conv1.weight"), "bottleneck lacks conv1.weight"),
        (without("model.encoder.feature_extractor.bn1.bias"), "encoder lacks bn1.bias"),
        (changed("model.decoder.extra", torch.zeros(1)), "decoder has extra, which the model has not"),
        (changed("model.bottleneck.bn1.bias", torch.zeros(3)), r"bn1.bias of shape \(3,\), expected \(128,\)"),
        (changed("model.bottleneck.bn1.bias", torch.full((128,), torch.nan)), "has NaN or infinity in bn1.bias"),
        (changed(FIRST, torch.zeros(512, 256, 3, 3)), "its decoder is of none of resnet18, resnet50, wide_resnet50_2"),
        (without(FIRST), "its decoder is of none of resnet18"),
        (lambda state: {"weight": torch.ones(3)}, r"is of neither layout \(no decoder in it\)"),
        (lambda state: [1, 2], "holds a list, not a state dict"),
        (lambda state: {"model": 3}, "is of neither layout"),
        (lambda state: {"bn": {3: torch.ones(1)}, "decoder": {FIRST[14:]: state[FIRST]}}, "bn has 3, which the model"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[State], object], says: str
) -> None:
    monkeypatch.setattr(rdedge_train.foreign, "read_checkpoint", lambda path: damage(genuine_state("resnet18")))
    with pytest.raises(WeightsError, match=rf"model\.ckpt: .*{says}.*; {REMEDY}"):
        read_foreign(Path("model.ckpt"), SIZE_HW, "imagenet")


class Payload:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


class Named:
    """Pickled as any function of any module, called with any arguments."""

    def __init__(self, line: str, *arguments: object):
        self.pickled = b"c" + line.encode() + b"\n(" + b"".join(pickle.dumps(a, 0)[:-1] for a in arguments) + b"tR."


def test_a_payload_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    path = saved(tmp_path / "model.ckpt", {"state_dict": {}, "callbacks": Payload(trace)})
    with pytest.raises(WeightsError, match=r"it names posix\.mkdir, which no checkpoint needs"):
        read_foreign(path, SIZE_HW, "imagenet")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "builtins getattr", "subprocess Popen", "torchx run", "__main__ f"]
)
def test_names_that_no_checkpoint_needs(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "model.ckpt", Named(name.replace(" ", "\n"), "true").pickled)
    with pytest.raises(WeightsError, match=f"it names {name.replace(' ', '.')}, which no"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["torch.hub load", "torch load", "numpy fromfile", "pathlib Path", "builtins set"])
def test_known_names_are_stand_ins_that_do_nothing(tmp_path: Path, name: str) -> None:
    one = read_checkpoint(archive(tmp_path / "model.ckpt", Named(name.replace(" ", "\n"), "/etc/passwd").pickled))
    assert isinstance(one, Inert)
    assert (one.name, one.arguments) == (name.replace(" ", "."), ("/etc/passwd",))


def archive(path: Path, pickled: bytes, *, method: int = zipfile.ZIP_STORED, storage: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("a/data.pkl", pickled)
        if storage is not None:
            out.writestr("a/data/0", storage)
    return path


def test_damaged_and_hostile_archives(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.ckpt", {"a": torch.arange(4.0)}).read_bytes()
    cases: dict[str, Path] = {"no data.pkl": tmp_path / "empty.ckpt", "No such file": tmp_path / "gone.ckpt"}
    with zipfile.ZipFile(cases["no data.pkl"], "w") as out:
        out.writestr("readme", "nothing")
    bomb = b"N." + bytes(10**6)
    cases["compressed or larger"] = archive(tmp_path / "bomb.ckpt", bomb, method=zipfile.ZIP_DEFLATED)
    cases["failed finding central"] = tmp_path / "cut.ckpt"
    cases["failed finding central"].write_bytes(whole[:-40])
    for says, path in cases.items():
        with pytest.raises(
            WeightsError, match=f"{path.name}: not a readable checkpoint .*{says}.*; {REMEDY}"
        ) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


TENSOR = "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQI{offset}\n"
TENSOR += "(I{size}\nt(I{stride}\ntI00\nNtR."


@pytest.mark.parametrize(("offset", "size", "stride"), [(0, 5, 1), (3, 2, 1), (0, 1000, 0), (0, 2, 10**12), (-1, 2, 1)])
def test_tensors_stay_in_their_storage(tmp_path: Path, offset: int, size: int, stride: int) -> None:
    storage = torch.arange(4.0).numpy().tobytes()

    def file(name: str, *numbers: int) -> Path:
        fields = dict(zip(("count", "offset", "size", "stride"), numbers, strict=True))
        return archive(tmp_path / name, TENSOR.format(**fields).encode(), storage=storage)

    assert torch.equal(read_checkpoint(file("right.ckpt", 4, 1, 3, 1)), torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"wrong\.ckpt: not a readable checkpoint"):
        read_checkpoint(file("wrong.ckpt", 4, offset, size, stride))
    with pytest.raises(WeightsError, match="storage 0 has 16 bytes, expected 20"):
        read_checkpoint(file("short.ckpt", 5, 0, 4, 1))


def test_a_module_that_holds_itself_has_an_end() -> None:
    module = Inert()
    module.state = {"_modules": {"a": module, "b": module}}
    with pytest.raises(WeightsError, match=r"m\.pt: a module in it holds too many others, or itself"):
        module_state(module, Path("m.pt"))
    broad = Inert()
    broad.state = {"_parameters": {"w": torch.ones(1)}}
    for _ in range(20):  # two to the twentieth leaves, no circle
        above = Inert()
        above.state = {"_modules": {"a": broad, "b": broad}}
        broad = above
    with pytest.raises(WeightsError, match="holds too many others"):
        module_state(broad, Path("m.pt"))
