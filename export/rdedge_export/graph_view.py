"""Questions about an ONNX graph: who makes a tensor, who reads it, what type it has, which layers hold weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_WEIGHTED = ("Conv", "ConvTranspose")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: its name in the trained model, its output tensor, the tensor it reads and its weight."""

    name: str
    output: str
    input: str
    weight: str
    is_transposed: bool


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

    def layers(self) -> list[Layer]:
        """Every convolution, in the order of the graph."""
        return [
            Layer(
                name=node.input[1].removesuffix(".weight"),
                output=node.output[0],
                input=node.input[0],
                weight=node.input[1],
                is_transposed=node.op_type == "ConvTranspose",
            )
            for node in self.model.graph.node
            if node.op_type in _WEIGHTED
        ]

    def judging(self) -> set[str]:
        """The nodes behind the features: from the products that a reduction sums up to the outputs."""
        judging: set[str] = set()
        for output, node in self.nodes.items():
            if node.op_type == "ReduceSum" or any(name in judging for name in self.made_inputs(node)):
                judging.add(output)
                judging.update(name for name in self.made_inputs(node) if self._is_product_of_sum(name))
        return judging

    def _is_product_of_sum(self, name: str) -> bool:
        return self.nodes[name].op_type == "Mul" and all(r.op_type == "ReduceSum" for r in self.readers[name])

    def leading_to_layers(self) -> set[str]:
        """The nodes whose result reaches a convolution, the convolutions themselves among them only if so."""
        leading: set[str] = set()
        for node in reversed(self.model.graph.node):
            after = self.readers[node.output[0]]
            if any(reader.op_type in _WEIGHTED or reader.output[0] in leading for reader in after):
                leading.add(node.output[0])
        return leading


def float_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, by ONNX's own inference. Raises onnx's errors on a wrong graph."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = inferred.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
