"""In which precision, and where, each layer of a built engine really runs, by its own inspector's account.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html (engine inspector)
and trtexec's ``--exportLayerInfo``, which writes the same JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rdedge.contract import Precision
from rdedge.errors import BackendError

# TensorRT 8 writes "Row major linear FP16 format", later versions "Half"; the lowest found names the layer.
_WORDS = {"int8": r"(?<!u)int8", "fp16": r"fp16|half|(?<!b)float16", "fp32": r"fp32|(?<!b)float"}  # the frame is UInt8


def layer_precisions(information: str) -> dict[str, str]:
    """Inspector JSON -> layer name -> "int8", "fp16", "fp32" or "other" (no floating point).

    Raises BackendError if the engine does not say: it was built without detailed verbosity.
    """
    return {str(layer["Name"]): _precision(layer) for layer in _layers(information)}


def _layers(information: str) -> list[dict[str, Any]]:
    try:
        layers = json.loads(information)["Layers"]
        for layer in layers:
            layer["Name"], list(_types(layer))
        return list(layers)
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise BackendError(
            "the engine does not tell its layers' precision", remedy="report this TensorRT version"
        ) from exc


def dla_layers(information: str, announced: frozenset[str]) -> tuple[str, ...]:
    """The layers of inspector JSON that run on DLA, in the engine's order: those whose type says so, and those that the
    builder ``announced`` (a part of the network that DLA runs is one layer, by a name like ``{ForeignNode[a...b]}``,
    and not every version's inspector gives it a type of its own: https://github.com/NVIDIA/TensorRT/issues/3143).

    Raises BackendError if there are none, or the engine does not say.
    """
    found = []
    for layer in _layers(information):
        name, kind = str(layer["Name"]), str(layer.get("LayerType", ""))
        if "dla" in kind.lower() or name in announced:
            found.append(name)
    if not found:
        raise BackendError(
            "the engine was asked to use DLA, but none of its layers runs there",
            remedy="nothing was written; leave out --dla, or report this graph and this TensorRT version",
        )
    return tuple(dict.fromkeys(found))


def _precision(layer: dict[str, Any]) -> str:
    types = " ".join(_types(layer)).lower()
    return next((name for name, words in _WORDS.items() if re.search(words, types)), "other")


def _types(layer: dict[str, Any]) -> Iterator[str]:
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        yield str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        yield str(weights.get("Type", ""))


def check_precision(precision: Precision, layers: dict[str, str]) -> None:
    """Raises BackendError if an engine of this precision has no layer that runs in it."""
    if precision not in layers.values():
        found = ", ".join(sorted(set(layers.values()))) or "none"
        raise BackendError(
            f"the engine was asked to be {precision}, but of its {len(layers)} layers none is (they are: {found})",
            remedy="nothing was written; use another precision, or report this graph and this TensorRT version",
        )
