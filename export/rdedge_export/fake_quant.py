"""Runs the network part of a Q/DQ graph in PyTorch, with gradients: what is trained here is what is exported.

Rounding has no useful gradient, so the one of the identity is taken within the range (straight-through estimator:
Bengio et al., arXiv 1308.3432; for networks in INT8: Jacob et al., arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rdedge.errors import ExportError
from rdedge_export.graph_view import GraphView
from rdedge_export.observers import INT8_MAX

_TRAINED = "restorer."  # parameters of bottleneck and student


def rounded_activation(x: Tensor, scale: Tensor) -> Tensor:
    """QuantizeLinear and DequantizeLinear of a tensor; the gradient is one within the range and zero outside."""
    inside = x.clamp(-(INT8_MAX + 1) * scale, INT8_MAX * scale)
    return inside + ((inside / scale).round() * scale - inside).detach()


def rounded_weight(weight: Tensor, channel_axis: int) -> Tensor:
    """The weights as qdq.py stores them, one scale an output channel from their largest magnitude; gradient one."""
    others = [axis for axis in range(weight.dim()) if axis != channel_axis]
    largest = weight.detach().abs().amax(dim=others, keepdim=True)
    scale = torch.where(largest > 0, largest / INT8_MAX, torch.ones_like(largest))
    return weight + ((weight / scale).round() * scale - weight).detach()


class FakeQuantised(nn.Module):
    """Frames in, the student's features out, every value rounded where the graph has a Q/DQ pair."""

    def __init__(self, int8: ModelProto, weights: Mapping[str, Tensor]):
        """``int8``: a graph of qdq.quantised; ``weights``: what its layers were quantised from, by parameter name.

        The parameters trained are those of bottleneck and student. Raises ExportError where the graph holds an
        operation that is not known here.
        """
        super().__init__()
        view = GraphView(int8)
        network = view.network()
        self._nodes = [node for node in int8.graph.node if node.output[0] in network]
        unknown = {node.op_type for node in self._nodes} - _OPERATIONS.keys() - {"QuantizeLinear", "DequantizeLinear"}
        if unknown:
            raise ExportError(f"--qat knows no {sorted(unknown)[0]}", remedy="export without --qat")
        self._frame_name = int8.graph.input[0].name
        self._constants = {
            name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for name, tensor in view.initialisers.items()
        }
        self._weights = dict(weights)
        self._trained = {name: nn.Parameter(t.detach().clone()) for name, t in weights.items() if _is_trained(name)}
        for i, parameter in enumerate(self._trained.values()):
            self.register_parameter(f"trained{i}", parameter)
        self._last_reader = {name: i for i, node in enumerate(self._nodes) for name in node.input}
        self.features = self._student_features(view, network)
        for name in self.features:
            self._last_reader[name] = len(self._nodes)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The trained parameters by name, as they are now."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def forward(self, frame: Tensor) -> list[Tensor]:
        """Frames uint8 (N, H, W, 3) -> the student's features, fine to coarse."""
        values: dict[str, Tensor] = {self._frame_name: frame}
        for i, node in enumerate(self._nodes):
            values[node.output[0]] = self._run(node, values)
            for name in node.input:
                if self._last_reader[name] == i:
                    values.pop(name, None)
        return sorted((values[name] for name in self.features), key=lambda f: -f.shape[2])

    def _run(self, node: NodeProto, values: Mapping[str, Tensor]) -> Tensor:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "QuantizeLinear":
            return rounded_activation(values[node.input[0]], self._constants[node.input[1]])
        if node.op_type == "DequantizeLinear":
            if node.input[0] in values:
                return values[node.input[0]]  # rounded before
            return rounded_weight(self._parameter(node.input[0].removesuffix("_int8")), attributes["axis"])
        inputs = [values[name] if name in values else self._parameter(name) if name else None for name in node.input]
        return _OPERATIONS[node.op_type](inputs, attributes)

    def _parameter(self, name: str) -> Tensor:
        for there in (self._trained, self._weights, self._constants):
            if name in there:
                return there[name]
        raise ExportError(f"the graph has no tensor {name}", remedy="report this model")

    def _student_features(self, view: GraphView, network: set[str]) -> list[str]:
        """What the judging part reads of what depends on a trained parameter."""
        depending: set[str] = set()
        for node in self._nodes:
            if any(name in depending or _is_trained(name) for name in node.input):
                depending.add(node.output[0])
        return [
            name
            for name in view.nodes
            if name in depending and any(r.output[0] not in network for r in view.readers[name])
        ]


def _is_trained(name: str) -> bool:
    return name.startswith(_TRAINED)


Inputs = list[Any]  # Tensor, or None for an input left out
Attributes = Mapping[str, Any]


def _convolution(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes["pads"]
    x = F.pad(inputs[0], (left, right, top, bottom))
    bias = inputs[2] if len(inputs) > 2 else None
    return F.conv2d(x, inputs[1], bias, attributes["strides"], 0, attributes["dilations"], attributes["group"])


def _transposed(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes["pads"]
    assert (top, left) == (bottom, right)
    bias = inputs[2] if len(inputs) > 2 else None
    strides, extra = attributes["strides"], attributes.get("output_padding", [0, 0])
    return F.conv_transpose2d(
        inputs[0], inputs[1], bias, strides, (top, left), extra, attributes["group"], attributes["dilations"]
    )


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes["pads"]
    x = F.pad(inputs[0], (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(x, attributes["kernel_shape"], attributes["strides"], dilation=attributes["dilations"])


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    assert attributes["mode"] == b"nearest", "the student repeats pixels, nothing else"
    return F.interpolate(inputs[0], scale_factor=inputs[2][2:].tolist(), mode="nearest")


_OPERATIONS: dict[str, Callable[[Inputs, Attributes], Tensor]] = {
    "Cast": lambda x, a: x[0].float() if a["to"] == TensorProto.FLOAT else x[0],
    "Transpose": lambda x, a: x[0].permute(*a["perm"]),
    "Sub": lambda x, a: x[0] - x[1],
    "Div": lambda x, a: x[0] / x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Add": lambda x, a: x[0] + x[1],
    "Relu": lambda x, a: x[0].relu(),
    "Clip": lambda x, a: x[0].clamp(*x[1:]),
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
    "Resize": _resize,
}
