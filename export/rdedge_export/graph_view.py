"""Questions about an ONNX graph: who makes a tensor, who reads it, what type it has, which layers hold weights."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_WEIGHTED = ("Conv", "ConvTranspose")
_CLOSING = ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear")
_LARGE_ELEMENTS = 4096
_JUDGES = ("head.", "anomaly_map.")  # parameters of the detector's judging modules


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: its name in the trained model, its output tensor, the tensor it reads and its weight."""

    name: str
    output: str
    input: str
    weight: str
    is_transposed: bool
    is_depthwise: bool

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels: weights are (C_out, C_in/g, kh, kw), transposed ones (C_in, C_out/g, kh, kw)."""
        return 1 if self.is_transposed else 0


class GraphView:
    """An index of one graph, which must not change while it is used. A node is known by its first output."""

    def __init__(self, model: ModelProto):
        self.model = model
        self.nodes: dict[str, NodeProto] = {node.output[0]: node for node in model.graph.node}
        self.initialisers: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {output.name for output in model.graph.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)

    def made_inputs(self, node: NodeProto) -> list[str]:
        """The inputs of a node that other nodes make, each once."""
        return [name for name in dict.fromkeys(node.input) if name in self.nodes]

    def weight(self, name: str) -> NDArray[np.float32]:
        """An initialiser's values."""
        return numpy_helper.to_array(self.initialisers[name])

    def large_constants(self, node: NodeProto) -> list[str]:
        """The float constants of a node that make a file noticeably larger."""
        there = (self.initialisers[name] for name in node.input if name in self.initialisers)
        return [t.name for t in there if t.data_type == TensorProto.FLOAT and math.prod(t.dims) >= _LARGE_ELEMENTS]

    def layers(self) -> list[Layer]:
        """Every convolution of teacher, bottleneck and student, in the order of the graph."""
        return [
            Layer(
                name=node.input[1].removesuffix(".weight"),
                output=node.output[0],
                input=node.input[0],
                weight=node.input[1],
                is_transposed=node.op_type == "ConvTranspose",
                is_depthwise=self._groups(node) > 1 and self.initialisers[node.input[1]].dims[1] == 1,
            )
            for node in self.model.graph.node
            if self._is_layer(node)
        ]

    def network(self) -> set[str]:
        """The nodes that make the features: what leads to a convolution, the convolutions, and the activations,
        residual additions and roundings behind them."""
        network = self._leading_to_layers()
        for output, node in self.nodes.items():
            made = self.made_inputs(node)
            is_closing = node.op_type in _CLOSING or (node.op_type == "Add" and len(made) == 2)
            if self._is_layer(node) or (is_closing and made and all(name in network for name in made)):
                network.add(output)
        return network

    def judging(self) -> set[str]:
        """The nodes behind the features, whatever the head is made of: all that are not the network's."""
        return set(self.nodes) - self.network()

    @staticmethod
    def _groups(node: NodeProto) -> int:
        return next((int(a.i) for a in node.attribute if a.name == "group"), 1)

    @staticmethod
    def _is_layer(node: NodeProto) -> bool:
        return node.op_type in _WEIGHTED and not node.input[1].startswith(_JUDGES)

    def _leading_to_layers(self) -> set[str]:
        """The nodes whose result reaches a convolution, the convolutions themselves among them only if so."""
        leading: set[str] = set()
        for node in reversed(self.model.graph.node):
            after = self.readers[node.output[0]]
            if any(self._is_layer(reader) or reader.output[0] in leading for reader in after):
                leading.add(node.output[0])
        return leading


def float_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, by ONNX's own inference. Raises onnx's errors on a wrong graph."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = inferred.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
