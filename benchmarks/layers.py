"""A graph as the layers an engine would make of it: operations, weights and values moved.

A Q/DQ pair is no layer: it says that a tensor lies in memory as INT8 and that who reads it computes in INT8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import onnx
from onnx import NodeProto, TensorProto, shape_inference

Precision = Literal["fp32", "fp16", "int8"]

MATRIX = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Sqrt", "Clip", "Relu", "Cast", "Pow", "Abs", "Exp", "Log", "Neg", "Max", "Min"),
    *("Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu", "Where", "Erf", "Reciprocal", "BatchNormalization", "Softplus"),
}
# Another shape of the same memory; of a Q/DQ pair, the memory itself.
SAME_BYTES = {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "QuantizeLinear", "DequantizeLinear"}
SHAPE_WORK = {"Shape", "Constant", "ConstantOfShape"}


@dataclass(slots=True, kw_only=True)
class Layer:
    """One launch. ``values``: read and written but for weights, for ``int8_values``, which only Q/DQ pairs read, and
    for ``bytes_in``, which are bytes in any precision. ``in_int8``: its product reads a dequantised tensor.
    """

    name: str
    kind: str
    matrix_ops: float = 0.0
    vector_ops: float = 0.0
    weights: int = 0
    values: int = 0
    int8_values: int = 0
    bytes_in: int = 0
    in_int8: bool = False
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)

    def figures(self) -> dict[str, object]:
        """For the results file."""
        return {
            "name": self.name,
            "kind": self.kind,
            "ops": self.matrix_ops + self.vector_ops,
            "weights": self.weights,
            "values": self.values + self.int8_values,
            "in_int8": self.in_int8,
        }


def precision_bytes(layer: Layer, precision: Precision) -> float:
    """Bytes a layer moves. INT8: one a value that passes a Q/DQ pair, one a weight of an INT8 layer, else two."""
    width = {"fp32": 4, "fp16": 2, "int8": 2}[precision]
    int8_width = 1 if precision == "int8" else width
    weight_width = int8_width if layer.in_int8 else width
    return layer.bytes_in + width * layer.values + int8_width * layer.int8_values + weight_width * layer.weights


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """Layers of a static graph, FP32 or with Q/DQ pairs, in its order.

    Raises ValueError for a node or a shape it cannot count.
    """
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes |= constants
    bytes_only = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8}
    only_int8 = _only_int8(graph)
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    same: dict[str, str] = {}
    made_by: dict[str, Layer] = {}
    readers = _readers(graph)
    layers: list[Layer] = []
    for node in graph.node:
        inputs = [same.get(name, name) for name in node.input if name]
        moving = [name for name in inputs if name not in constants]
        if node.op_type in SHAPE_WORK or not moving:
            constants |= {name: _shape(shapes, name) for name in node.output}
            continue
        if node.op_type in SAME_BYTES:
            same[node.output[0]] = moving[0]
            readers[moving[0]] = readers.get(moving[0], 0) - 1 + readers.get(node.output[0], 0)
            continue
        layer = _joined(node, moving, made_by, readers)
        if layer is None:
            layer = Layer(name=node.name or node.output[0], kind=node.op_type)
            layers.append(layer)
        layer.inputs |= set(moving)
        layer.outputs |= set(node.output)
        layer.weights += sum(math.prod(constants[name]) for name in inputs if name in constants)
        matrix_ops, vector_ops = _operations(node, shapes)
        layer.matrix_ops += matrix_ops
        layer.vector_ops += vector_ops
        layer.in_int8 |= node.op_type in MATRIX and node.input[0] in dequantised
        made_by |= dict.fromkeys(node.output, layer)
    _count_values(layers, shapes, readers, {same.get(v.name, v.name) for v in graph.output}, bytes_only, only_int8)
    return layers


def _readers(graph: onnx.GraphProto) -> dict[str, int]:
    """How many nodes read a tensor; an output of the graph has the caller too."""
    readers: dict[str, int] = {}
    for name in [*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)]:
        readers[name] = readers.get(name, 0) + 1
    return readers


def _only_int8(graph: onnx.GraphProto) -> set[str]:
    """Tensors that nobody reads but to quantise them, so that an engine never writes them wider."""
    readers: dict[str, set[str]] = {value.name: {"the caller"} for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {name for name, kinds in readers.items() if kinds == {"QuantizeLinear"}}


def _joined(node: NodeProto, moving: list[str], made_by: dict[str, Layer], readers: dict[str, int]) -> Layer | None:
    """The layer that an elementwise node becomes part of: the maker of an input that nobody else reads."""
    if node.op_type not in ELEMENTWISE:
        return None
    makers = [made_by[name] for name in moving if name in made_by and readers[name] == moving.count(name)]
    return makers[-1] if makers else None


def _count_values(
    layers: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    readers: dict[str, int],
    ends: set[str],
    bytes_only: set[str],
    only_int8: set[str],
) -> None:
    """What crosses a layer's border: inputs made elsewhere, and outputs that others read."""
    for layer in layers:
        inside = {name for name in layer.outputs if name in layer.inputs and readers[name] == 1}
        read = layer.inputs - layer.outputs
        written = {name for name in layer.outputs - inside if readers.get(name, 0) or name in ends}
        layer.bytes_in = sum(math.prod(_shape(shapes, name)) for name in read & bytes_only)
        for name in (*(read - bytes_only), *written):
            if name in only_int8:
                layer.int8_values += math.prod(_shape(shapes, name))
            else:
                layer.values += math.prod(_shape(shapes, name))


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or any(side < 1 for side in shape):
        raise ValueError(f"tensor {name} has no fixed shape ({shape})")
    return shape


def _operations(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> tuple[float, float]:
    """On matrices, and one by one; two for each multiply-add."""
    out = math.prod(_shape(shapes, node.output[0]))
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = _shape(shapes, node.input[1])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        pixels = math.prod(_shape(shapes, node.output[0] if node.op_type == "Conv" else node.input[0]))
        ops = 2.0 * pixels * math.prod(weight[1:])
        is_depthwise = groups > 1 and groups == _shape(shapes, node.input[0])[1]
        return (0.0, ops) if is_depthwise else (ops, 0.0)
    if node.op_type == "MatMul":
        return 2.0 * out * _shape(shapes, node.input[0])[-1], 0.0
    if node.op_type == "Gemm":
        is_transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2.0 * out * _shape(shapes, node.input[0])[0 if is_transposed else 1], 0.0
    if node.op_type in ("Transpose", "Concat", "Slice", "Pad", "Gather", "Split"):
        return 0.0, 0.0
    if node.op_type.startswith("Reduce") or node.op_type.endswith("Pool"):
        return 0.0, float(math.prod(_shape(shapes, node.input[0])))
    if node.op_type in ELEMENTWISE or node.op_type in ("Resize", "Softmax", "LpNormalization", "GlobalAveragePool"):
        return 0.0, float(out)
    raise ValueError(f"node {node.op_type} is not known to this count")
