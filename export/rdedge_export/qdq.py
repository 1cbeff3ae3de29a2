"""Writes an INT8 graph with explicit Q/DQ: symmetric, weights by channel and stored as INT8, activations by tensor.

Where the pairs go follows NVIDIA's rules for explicit quantisation (TensorRT Developer Guide, "Q/DQ layer-placement
recommendations"; Model Optimizer does the same): before every input of a quantised convolution, so that convolution
and activation fuse up to the next pair; on the skip branch of a residual addition, so that the addition joins the
convolution before it; one pair a tensor, whoever reads it. Stem, depthwise and transposed convolutions are not touched,
nor is what judges their features. The stem reads pixels and doubles a ResNet-18's map error. Depthwise ones hold few
weights, cost the maps most (the demo's edge-lite0 keeps a map cosine of 0.98 to FP32 without them in INT8, of 0.85 with
them), and TensorRT-RTX pads their INT8 weights to many times the size (tests/engines/test_rtx_builder.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rdedge.errors import ExportError
from rdedge_export.graph_view import GraphView, Layer
from rdedge_export.observers import INT8_MAX

# Behind a quantised convolution these run in its kernel or on its INT8 result, so no FP16 comes in between.
_FUSING = ("Clip", "Relu", "Add", "Concat", "Resize", "MaxPool")


@dataclass(frozen=True, slots=True)
class Quantised:
    """An FP32 graph with Q/DQ pairs, and its nodes that may not be cast to FP16 as they are what INT8 fuses."""

    model: ModelProto
    int8_nodes: frozenset[str]


def quantisable(model: ModelProto, *, with_transposed: bool = False) -> list[Layer]:
    """The convolutions that become INT8, in the order of the graph; transposed ones only if asked for."""
    view = GraphView(model)
    behind: set[str] = set()  # nodes that some convolution leads to
    chosen = []
    convolutions = {layer.output: layer for layer in view.layers()}
    for output, node in view.nodes.items():
        is_behind = any(name in behind or name in convolutions for name in view.made_inputs(node))
        if is_behind:
            behind.add(output)
        layer = convolutions.get(output)
        if layer is None or not is_behind or layer.is_depthwise:
            continue
        if with_transposed or not layer.is_transposed:
            chosen.append(layer)
    return chosen


def tensors_to_observe(model: ModelProto, layers: Collection[Layer]) -> list[str]:
    """The tensors that need a range if these layers are quantised: their inputs, and skip branches."""
    view = GraphView(model)
    skips = _skip_branches(view, {layer.output for layer in layers}).values()
    return list(dict.fromkeys((*(layer.input for layer in layers), *skips)))


def quantised(model: ModelProto, layers: Collection[Layer], limits: Mapping[str, float]) -> Quantised:
    """A copy of an FP32 graph with these layers in INT8.

    ``limits``: for each of ``tensors_to_observe`` the magnitude that becomes 127. Raises ExportError if one is not
    a positive number.
    """
    view = GraphView(model)
    chosen = {layer.output: layer for layer in layers}
    skips = _skip_branches(view, set(chosen))
    nodes: list[NodeProto] = []
    constants = {name: tensor for name, tensor in view.initialisers.items()}
    int8_nodes: set[str] = set()
    dequantised: dict[str, str] = {}
    for output, original in view.nodes.items():
        node = NodeProto()
        node.CopyFrom(original)
        layer = chosen.get(output)
        pair_for = layer.input if layer is not None else skips.get(output)
        if pair_for is not None:
            if pair_for not in dequantised:
                pair = _pair(pair_for, limits[pair_for], constants)
                nodes += pair
                dequantised[pair_for] = pair[1].output[0]
                int8_nodes |= {made.output[0] for made in pair}
            for i, name in enumerate(original.input):
                node.input[i] = dequantised[pair_for] if name == pair_for else name
        if layer is not None:
            dequantise = _int8_weight(layer, view.weight(layer.weight), constants)
            nodes.append(dequantise)
            node.input[1] = dequantise.output[0]
            int8_nodes |= {dequantise.output[0], output}
        elif original.op_type in _FUSING and all(
            name in int8_nodes for name in node.input if name in view.nodes or name in dequantised.values()
        ):
            int8_nodes.add(output)
        nodes.append(node)
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    result.graph.initializer.extend(tensor for name, tensor in constants.items() if name in read)
    return Quantised(result, frozenset(int8_nodes))


def _skip_branches(view: GraphView, quantised_outputs: set[str]) -> dict[str, str]:
    """For each residual addition behind a quantised convolution: the tensor that skips it.

    Where both inputs are convolutions, the first is the main branch (torch writes ``out += identity``), whichever of
    them is quantised: else fewer layers could need ranges that more layers do not.
    """
    convolutions = {layer.output for layer in view.layers()}
    skips = {}
    for output, node in view.nodes.items():
        made = view.made_inputs(node)
        if node.op_type != "Add" or len(made) != 2:
            continue
        main, skip = made if made[0] in convolutions else reversed(made)
        if main in quantised_outputs:
            skips[output] = skip
    return skips


def _pair(tensor: str, limit: float, constants: dict[str, TensorProto]) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear of one activation."""
    scale = np.float32(limit / INT8_MAX)
    if not (np.isfinite(scale) and scale > 0):
        raise ExportError(f"tensor {tensor} has the range {limit}", remedy="calibrate on other good images")
    names = [f"{tensor}_scale", "int8_zero"]
    constants[names[0]] = numpy_helper.from_array(np.asarray(scale), names[0])
    constants[names[1]] = numpy_helper.from_array(np.zeros((), np.int8), names[1])
    coarse, back = f"{tensor}_int8", f"{tensor}_dequantised"
    return [
        helper.make_node("QuantizeLinear", [tensor, *names], [coarse], name=f"quantise_{tensor}"),
        helper.make_node("DequantizeLinear", [coarse, *names], [back], name=f"dequantise_{tensor}"),
    ]


def weight_scales(weight: NDArray[np.float32], channel_axis: int) -> NDArray[np.float32]:
    """Of weights in four dimensions: one scale an output channel, (1, C, 1, 1) or (C, 1, 1, 1) by ``channel_axis``."""
    others = tuple(axis for axis in range(4) if axis != channel_axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    # A channel of zeros: any scale represents it.
    return np.where(largest > 0, largest / INT8_MAX, 1.0).astype(np.float32)


def _int8_weight(layer: Layer, weight: NDArray[np.float32], constants: dict[str, TensorProto]) -> NodeProto:
    """Stores a layer's weights as INT8 with one scale an output channel, and dequantises them."""
    name, axis = layer.weight, layer.channel_axis
    scale = weight_scales(weight, axis)
    coarse = np.clip(np.rint(weight / scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    names = [f"{name}_int8", f"{name}_scale", f"int8_zeros_{scale.size}"]
    for constant, values in zip(names, (coarse, scale.ravel(), np.zeros(scale.size, np.int8)), strict=True):
        constants[constant] = numpy_helper.from_array(values, constant)
    return helper.make_node("DequantizeLinear", names, [f"{name}_dequantised"], name=f"dequantise_{name}", axis=axis)
