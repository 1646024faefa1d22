"""8 bits for weights alone; activations stay float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from shipline.errors import ConfigError
from shipline.export.passes.base import GraphPass, Material, refused
from shipline.export.passes.uses import used

_AXES = {"MatMul": 1, "Conv": 0}  # along which an operator's weights have their channels
_OPERATORS = (*_AXES, "Gemm", "Gather")


@dataclass(frozen=True, kw_only=True)
class WeightsInt8(GraphPass):
    """Weights of products, convolutions and embeddings as int8 with a scale for each channel or row.

    They become float again where they are used, with operators that every runtime has: a quarter of the size, about the
    speed of float32, and answers that hardly differ.

    Args:
        least: smaller weights stay as they are.
    """

    least: int = 1024

    precision: ClassVar[str] = "int8-weights"
    tolerance: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.least, bool) or not isinstance(self.least, int) or self.least < 1:
            raise ConfigError(f"WeightsInt8 has least={self.least!r}; set a whole number from 1 on.")

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the graph with small weights; GateError where it has none that could be."""
        try:
            graph = onnx.load_from_string(model)
            count = shrink(graph.graph, self.least)
        except Exception as error:  # whatever a user's graph holds
            raise refused(self.precision, error) from error
        if not count:
            raise refused(self.precision, ValueError(f"it has no weights of {self.least} numbers or more"))
        return bytes(graph.SerializeToString())


def shrink(graph: onnx.GraphProto, least: int, op_types: Collection[str] = _OPERATORS) -> int:
    """Put int8 in the place of every large weight that the main graph uses once, in such a node; return how many."""
    uses = Counter([*used(graph), *(value.name for value in graph.output)])
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and uses[tensor.name] == 1 and math.prod(tensor.dims) >= least
    }
    nodes, small = list[onnx.NodeProto](), dict[str, list[onnx.TensorProto]]()
    for node in graph.node:
        place = next((i for i, name in enumerate(node.input) if name in weights), -1)
        axis = None if place < 0 or node.op_type not in op_types else _channels(node, place, weights[node.input[place]])
        if axis is None:
            nodes.append(node)
            continue
        tensor = weights[node.input[place]]
        made, small[tensor.name] = _replaced(node, tensor, axis)
        nodes += made
    tensors = [new for tensor in graph.initializer for new in small.get(tensor.name, [tensor])]
    for field, content in (("node", nodes), ("initializer", tensors)):
        kept = [type(each).FromString(each.SerializeToString()) for each in content]
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
    return len(small)


def _channels(node: onnx.NodeProto, place: int, tensor: onnx.TensorProto) -> int | None:
    """The axis along which this use of a weight has its channels; None where it is no weight."""
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Gather":
        return 0 if place == 0 and len(tensor.dims) == 2 and attributes.get("axis", 0) == 0 else None
    if place != 1 or (node.op_type == "MatMul" and len(tensor.dims) != 2):
        return None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return _AXES.get(node.op_type)


def _replaced(
    node: onnx.NodeProto, tensor: onnx.TensorProto, axis: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that take this one's place with int8 instead of the tensor, and the tensors that they use."""
    array, name = numpy_helper.to_array(tensor), tensor.name
    others = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.maximum(np.abs(array).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
    small = numpy_helper.from_array(np.clip(np.rint(array / scale), -127, 127).astype(np.int8), f"{name}_int8")
    scales = numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale")
    if node.op_type == "Gather":  # only the rows that were asked for become float
        index = node.input[1]
        rows = [
            helper.make_node("Gather", [each.name, index], [f"{each.name}_rows"], name=f"{each.name}_rows")
            for each in (small, scales)
        ]
        return [*rows, *_product(f"{small.name}_rows", f"{scales.name}_rows", node.output[0])], [small, scales]
    node.input[1] = f"{name}_float"
    return [*_product(small.name, scales.name, node.input[1]), node], [small, scales]


def _product(small: str, scales: str, output: str) -> list[onnx.NodeProto]:
    """Return what makes floats of int8.

    No DequantizeLinear: before a MatMul, onnxruntime takes that for leave to round activations, too.
    """
    whole = f"{small}_whole"
    return [
        helper.make_node("Cast", [small], [whole], name=whole, to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [whole, scales], [output], name=f"{small}_scaled"),
    ]
