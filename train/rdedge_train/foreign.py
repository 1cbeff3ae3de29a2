"""Detectors that other programs trained: the official RD4AD code and anomalib's ReverseDistillation."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rdedge.errors import WeightsError
from rdedge_train.checkpoint_file import REMEDY, Inert, module_state, read_checkpoint
from rdedge_train.model import Detector
from rdedge_train.official import check_state, fill_official, is_official, without_unused
from rdedge_train.paper import RESNETS, Bottleneck
from rdedge_train.teachers import load_teacher_weights, state_sha256

_PREFIXES = {"encoder": "encoder.feature_extractor.", "bottleneck": "bottleneck.", "decoder": "decoder."}


def read_foreign(path: Path, size_hw: tuple[int, int], teacher_weights: str) -> tuple[Detector, str, str]:
    """The detector of a checkpoint, its model's name, and where its teacher's weights came from.

    ``teacher_weights``: as for ``load_teacher_weights``; only the official code's checkpoints need it, as they hold no
    teacher. Raises WeightsError; nothing in the file is run.
    """
    checkpoint = read_checkpoint(path)
    if is_official(checkpoint):
        model = _model_of(checkpoint["decoder"], path)
        detector = Detector(model, size_hw, ocbe="mff+oce", head="plain")
        fill_official(detector.restorer, checkpoint, path)
        return detector, model, load_teacher_weights(detector.teacher, model, teacher_weights)
    state = _anomalib_state(checkpoint, path)
    parts = {
        name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for name, prefix in _PREFIXES.items()
    }
    model = _model_of(parts["decoder"], path)
    detector = Detector(model, size_hw, ocbe="mff+oce", head="plain")
    if model == "wide_resnet50_2" and _first_width(parts["bottleneck"]) == _first_width(
        Bottleneck(RESNETS["resnet50"], "mff+oce").state_dict()
    ):
        # anomalib's bottleneck is a plain ResNet-50's also where teacher and decoder are wide.
        detector.restorer.bottleneck = Bottleneck(RESNETS["resnet50"], "mff+oce")
    modules = {
        "encoder": detector.teacher.encoder,
        "bottleneck": detector.restorer.bottleneck,
        "decoder": detector.restorer.student,
    }
    parts["bottleneck"] = without_unused(parts["bottleneck"])
    for name, module in modules.items():
        check_state(module, parts[name], f"{path}: {name}")
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    return detector, model, f"{path.name} sha256:{state_sha256(detector.teacher.state_dict())}"


def _anomalib_state(checkpoint: object, path: Path) -> dict[str, Tensor]:
    """Names without what wraps the network: of a Lightning checkpoint, an exported module or a plain state dict."""
    found: object = checkpoint
    settings: object = None
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        found = checkpoint["state_dict"]
        settings = checkpoint.get("hyper_parameters")
    elif isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), Inert):
        found = module_state(checkpoint["model"], path)
        settings = _settings_of(checkpoint["model"])
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__}, not a state dict", remedy=REMEDY)
    _refuse_product(settings, path)
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    for wrapper in ("model.", ""):
        inner = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
        if any(key.startswith(_PREFIXES["decoder"]) for key in inner):
            return inner
    raise WeightsError(f"{path}: is of neither layout (no decoder in it)", remedy=REMEDY)


def _settings_of(module: Inert) -> object:
    return module.state if isinstance(module.state, dict) else None


def _refuse_product(settings: object, path: Path) -> None:
    """anomalib can multiply the levels' maps; here, as in the paper, they are summed."""
    mode = settings.get("anomaly_map_mode") if isinstance(settings, dict) else None
    value = mode.arguments[0] if isinstance(mode, Inert) and mode.arguments else mode
    if value not in (None, "add"):
        raise WeightsError(
            f"{path}: multiplies the levels' maps (anomaly_map_mode {value!r}), rdedge sums them as the paper does",
            remedy="train it with anomaly_map_mode add",
        )


def _model_of(decoder: dict[str, Tensor], path: Path) -> str:
    """Each model's decoder starts with a kernel of its own shape."""
    first = decoder.get("layer1.0.conv1.weight")
    shapes = {"resnet18": (512, 256, 2, 2), "resnet50": (256, 2048, 1, 1), "wide_resnet50_2": (512, 2048, 1, 1)}
    for model, shape in shapes.items():
        if isinstance(first, Tensor) and first.shape == shape:
            return model
    raise WeightsError(f"{path}: its decoder is of none of {', '.join(RESNETS)}", remedy=REMEDY)


def _first_width(bottleneck: dict[str, Tensor]) -> int | None:
    first = bottleneck.get("bn_layer.0.conv1.weight")
    return None if first is None else int(first.shape[0])
