"""8 bits for weights alone; activations stay float."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from shipline.errors import ConfigError
from shipline.export.passes.base import Material, Pass, refused

_OPSET = 13  # in which DequantizeLinear learned of channels
_AXES = {"MatMul": 1, "Conv": 0}  # along which an operator's weights have their channels


@dataclass(frozen=True, kw_only=True)
class WeightsInt8(Pass):
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
            _check_opset(graph)
            count = _shrink(graph.graph, self.least)
        except Exception as error:  # whatever a user's graph holds
            raise refused(self.precision, error) from error
        if not count:
            raise refused(self.precision, ValueError(f"it has no weights of {self.least} numbers or more"))
        return bytes(graph.SerializeToString())


def _check_opset(model: onnx.ModelProto) -> None:
    version = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if version < _OPSET:
        raise ValueError(f"it is of opset {version}; {_OPSET} is needed")


def _shrink(graph: onnx.GraphProto, least: int) -> int:
    """Put int8 in the place of every weight that has one use, in the main graph; return of how many."""
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses[name].append((node, place))
    kept, outputs = [], {value.name for value in graph.output}
    for tensor in graph.initializer:
        used = uses[tensor.name]
        if (
            len(used) != 1
            or tensor.name in outputs
            or math.prod(tensor.dims) < least
            or (axis := _channels(*used[0], tensor)) is None
        ):
            kept.append(tensor)
        else:
            kept += _replace(graph, used[0][0], tensor, axis)
    count = len(kept) - len(graph.initializer)  # each that was replaced became two
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return count


def _channels(node: onnx.NodeProto, place: int, tensor: onnx.TensorProto) -> int | None:
    """The axis along which this use of a weight has its channels; None where it is no weight."""
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Gather":
        return 0 if place == 0 and len(tensor.dims) == 2 and attributes.get("axis", 0) == 0 else None
    if place != 1 or (node.op_type == "MatMul" and len(tensor.dims) != 2):
        return None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return _AXES.get(node.op_type)


def _replace(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TensorProto, axis: int
) -> list[onnx.TensorProto]:
    """Let the node use int8 instead of the tensor; return what then takes its place."""
    array, name = numpy_helper.to_array(tensor), tensor.name
    others = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.maximum(np.abs(array).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
    small = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
    at = list(graph.node).index(node)
    if node.op_type == "Gather":  # only the rows that were asked for become float
        rows, index, output = f"{name}_rows", node.input[1], node.output[0]
        scales = scale.astype(np.float32)
        made = [
            helper.make_node("Gather", [f"{name}_int8", index], [rows], name=rows),
            helper.make_node("Cast", [rows], [f"{rows}_float"], name=f"{rows}_float", to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", index], [f"{rows}_scale"], name=f"{rows}_scale"),
            helper.make_node("Mul", [f"{rows}_float", f"{rows}_scale"], [output], name=f"{rows}_scaled"),
        ]
        graph.node.remove(node)
    else:
        scales = scale.astype(np.float32).reshape(-1)
        inputs = [f"{name}_int8", f"{name}_scale"]
        made = [helper.make_node("DequantizeLinear", inputs, [f"{name}_float"], name=f"{name}_float", axis=axis)]
        node.input[1] = f"{name}_float"
    for place, new in enumerate(made):
        graph.node.insert(at + place, new)
    return [numpy_helper.from_array(small, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scale")]
