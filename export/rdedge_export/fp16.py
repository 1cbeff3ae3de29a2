"""Writes types into an ONNX graph: the nodes chosen compute in FP16, all others in FP32, inputs and outputs stay.

TensorRT obeys the types of a graph (strong typing) and has no other way from version 11 on, so they are written here
node by node: each constant is converted once, and a Cast stands only where a value crosses from one type to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rdedge.errors import ExportError
from rdedge_export.graph_view import GraphView, float_types

FP16_MAX = 65504.0
_SCALES_INPUT = 2  # of Resize: always float32
# These hand on values they were given, so a value already rounded to FP16 stays what it is.
_HANDING_ON = ("Clip", "Relu", "MaxPool", "Transpose", "Concat", "Resize", "ReduceMax")


def unfit_for_fp16(model: ModelProto, absmax: Mapping[str, float]) -> dict[str, str]:
    """Nodes that FP16 would break on some part, by first output, with the reason.

    ``absmax``: the largest magnitude of every tensor on real frames. What comes within half of FP16's range is too
    large already, so that brighter parts have room; a constant that becomes zero, as the limit that keeps a norm off
    zero does, means something else.
    """
    view = GraphView(model)
    reasons: dict[str, str] = {}
    for output, node in view.nodes.items():
        for name in (*node.input, *node.output):
            largest = absmax.get(name, 0.0)
            if name in view.initialisers and view.initialisers[name].data_type == TensorProto.FLOAT:
                largest = float(np.abs(view.weight(name)).max(initial=0.0))
                if largest > 0.0 and np.float16(min(largest, FP16_MAX)) == 0.0:
                    reasons[output] = f"FP16 makes its constant {largest:.2g} zero"
            if largest > FP16_MAX / 2:
                reasons[output] = f"{name} reaches {largest:.3g}, FP16 ends at {FP16_MAX:g}"
    return reasons


def with_fp16(
    model: ModelProto, fp16_nodes: Collection[str], stored_in_fp16: Collection[str] = frozenset()
) -> ModelProto:
    """A copy in which the nodes with these first outputs compute in FP16; Q/DQ pairs, FP32 in opset 17, are not.

    ``stored_in_fp16``: constants kept in half the bytes also where FP32 nodes read them, through a Cast. Raises
    ExportError if a constant of such a node exceeds FP16's range, or if the result does not type-check.
    """
    typed = _Typing(model, frozenset(fp16_nodes), frozenset(stored_in_fp16)).run()
    try:
        onnx.checker.check_model(typed, full_check=True)
        float_types(typed)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the FP16 graph does not type-check ({exc})", remedy="report this model") from exc
    return typed


class _Typing:
    """One pass over a graph in order; every tensor it has met is known by its type."""

    def __init__(self, model: ModelProto, fp16_nodes: frozenset[str], stored_in_fp16: frozenset[str]):
        self._view = GraphView(model)
        self._fp16_nodes = fp16_nodes
        self._stored_in_fp16 = stored_in_fp16
        self._type_of = {name: kind for name, kind in float_types(model).items() if kind == TensorProto.FLOAT}
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._renamed: dict[str, str] = {}  # outputs of the graph that FP16 nodes make
        self._cast: set[str] = set()

    def run(self) -> ModelProto:
        model = self._view.model
        for node in model.graph.node:
            self._add(node)
        typed = ModelProto()
        typed.CopyFrom(model)
        del typed.graph.node[:], typed.graph.initializer[:], typed.graph.value_info[:]
        typed.graph.node.extend(self._nodes)
        typed.graph.initializer.extend(self._constants.values())
        return typed

    def _add(self, original: NodeProto) -> None:
        kind = TensorProto.FLOAT16 if original.output[0] in self._fp16_nodes else TensorProto.FLOAT
        node = NodeProto()
        node.CopyFrom(original)
        for i, name in enumerate(original.input):
            is_scales = node.op_type == "Resize" and i == _SCALES_INPUT
            node.input[i] = self._read(name, TensorProto.FLOAT if is_scales else kind)
        if kind == TensorProto.FLOAT16 and node.op_type == "Cast":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", kind))
        self._nodes.append(node)
        for i, name in enumerate(original.output):
            if kind == TensorProto.FLOAT16 and name in self._type_of:
                self._type_of[name] = kind
                if name in self._view.outputs:
                    node.output[i] = self._renamed[name] = f"{name}_fp16"
                    self._nodes.append(_cast(f"{name}_fp16", name, TensorProto.FLOAT))

    def _read(self, name: str, kind: int) -> str:
        """The name under which this tensor can be read in this type; makes the constant or Cast at first use."""
        if name in self._view.initialisers:
            if kind == TensorProto.FLOAT and name in self._stored_in_fp16:
                return self._cast_once(self._constant(name, TensorProto.FLOAT16), f"{name}_fp32", kind)
            return self._constant(name, kind if name in self._type_of else None)
        there = self._renamed.get(name, name)
        if self._type_of.get(name, kind) == kind:
            return there
        if name in self._renamed:
            return name  # the graph's own FP32 output
        return self._cast_once(there, f"{name}_{'fp16' if kind == TensorProto.FLOAT16 else 'fp32'}", kind)

    def _cast_once(self, source: str, target: str, kind: int) -> str:
        if target not in self._cast:
            self._cast.add(target)
            self._nodes.append(_cast(source, target, kind))
        return target

    def _constant(self, name: str, kind: int | None) -> str:
        tensor = self._view.initialisers[name]
        if kind != TensorProto.FLOAT16:
            self._constants[name] = tensor
            return name
        wanted = f"{name}_fp16"
        if wanted not in self._constants:
            values = numpy_helper.to_array(tensor)
            if not (np.abs(values) <= FP16_MAX).all():
                raise ExportError(
                    f"{name} reaches {np.abs(values).max():.3g}, FP16 ends at {FP16_MAX:g}",
                    remedy="export without fp16, or train again with a lower --learning-rate",
                )
            self._constants[wanted] = numpy_helper.from_array(values.astype(np.float16), wanted)
        return wanted


def as_stored(typed: ModelProto) -> ModelProto:
    """The same graph in FP32 arithmetic with every FP16 result rounded, as an engine stores it between layers.

    ONNX Runtime's CPU computes FP16 graphs in FP32 and rounds nothing on the way (it drops the casts it inserts, so
    even an overflow goes unseen); this graph shows what the types cost.
    """
    types = float_types(typed)
    plain = ModelProto()
    plain.CopyFrom(typed)
    del plain.graph.node[:], plain.graph.initializer[:], plain.graph.value_info[:]
    for tensor in typed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        plain.graph.initializer.append(tensor)
    for original in typed.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        output = original.output[0]
        if types[output] == TensorProto.FLOAT16 and node.op_type not in _HANDING_ON:
            if node.op_type == "Cast":
                node.output[0] = f"{output}_stored"
                plain.graph.node.extend([node, _cast(f"{output}_stored", output, TensorProto.FLOAT)])
                continue
            node.output[0] = f"{output}_exact"
            plain.graph.node.append(node)
            plain.graph.node.append(_cast(f"{output}_exact", f"{output}_stored", TensorProto.FLOAT16))
            plain.graph.node.append(_cast(f"{output}_stored", output, TensorProto.FLOAT))
        else:
            plain.graph.node.append(node)
    return plain


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{source}_to_{target}", to=kind)
