"""Which nodes of a graph suffer most from 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from shipline.backends.base import Arrays
from shipline.export.rows import in_batches

#: Rows that go through at once: a network twice takes the memory of twice as many.
BATCH = 8

_FROM, _TO = "QuantizeLinear", "DequantizeLinear"


class Sweep:
    """A graph of which any nodes can be rounded, from one run to the next.

    Each node that can be stands in it twice, as it is and with its inputs rounded, and a flag that is an input of the
    graph says which of the two goes on: one session measures any choice of them.

    Args:
        plain: file of the float graph.
        small: file of the same graph with QuantizeLinear pairs.
        op_types: the operators that are looked at.
        rows: real inputs.
    """

    def __init__(self, plain: str, small: str, op_types: Collection[str], rows: Arrays) -> None:
        model, rounded = onnx.load(plain), onnx.load(small)
        outputs = [output.name for output in model.graph.output]
        twins = list(_twins(model.graph, rounded.graph, op_types))
        _graft(model, rounded, twins)
        self.nodes = {twin.name: twin.op_type for _, twin in twins}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._session, self._rows, self._outputs = session, rows, outputs
        self._plain = self._run((), None)

    def error(self, rounded: Collection[str], count: int | None = None) -> float:
        """Return what the answers to (the first `count`) rows lose where these nodes are rounded, at most of an output.

        An error is the length of the difference, in parts of the output's length.
        """
        norm = np.linalg.norm
        pairs = zip((output[:count] for output in self._plain), self._run(rounded, count), strict=True)
        return max(float(norm(one - other)) / max(float(norm(one)), 1e-12) for one, other in pairs)

    def _run(self, rounded: Collection[str], count: int | None) -> list[np.ndarray]:
        rows = {name: array[:count] for name, array in self._rows.items()}
        flags = {_flag(name): np.array(name in rounded) for name in self.nodes}
        parts = [self._session.run(self._outputs, {**batch, **flags}) for batch in in_batches(rows, BATCH)]
        return [np.concatenate(outputs).astype(np.float64) for outputs in zip(*parts, strict=True)]


def _twins(
    plain: onnx.GraphProto, rounded: onnx.GraphProto, op_types: Collection[str]
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each node of which there is one with rounded inputs, and that one."""
    by_name = {node.name: node for node in rounded.node}
    for node in plain.node:
        twin = by_name.get(node.name)
        if twin is not None and node.op_type in op_types and list(twin.input) != list(node.input):
            yield node, twin


def _graft(
    model: onnx.ModelProto, rounded: onnx.ModelProto, twins: list[tuple[onnx.NodeProto, onnx.NodeProto]]
) -> None:
    """Put the twins into the float graph, with what rounds their inputs, and a choice after each pair."""
    graph = model.graph
    tensors = {tensor.name for tensor in graph.initializer}
    known = tensors | {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    pairs = [node for node in rounded.graph.node if node.op_type in (_FROM, _TO) and node.output[0] not in known]
    for node in pairs:  # an output of the graph is rounded from a tensor of another name
        source = node.input[0].removesuffix("_QuantizeLinear_Input")
        node.input[0] = source if node.op_type == _FROM and source in known else node.input[0]
    choices = []
    for node, twin in twins:
        name, flag = node.output[0], _flag(twin.name)
        node.name, node.output[0], twin.output[0] = f"{node.name}_plain", f"{name}_plain", f"{name}_rounded"
        choices.append(helper.make_node("Where", [flag, twin.output[0], node.output[0]], [name]))
        graph.input.append(helper.make_tensor_value_info(flag, onnx.TensorProto.BOOL, []))
    added = [*pairs, *(twin for _, twin in twins), *choices]
    graph.initializer.extend(tensor for tensor in rounded.graph.initializer if tensor.name not in tensors)
    nodes = _sorted([*graph.node, *added], {each.name for each in (*graph.initializer, *graph.input)})
    graph.ClearField("node")
    graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.extend(rounded.opset_import)


def _flag(node: str) -> str:
    return f"{node}_is_rounded"


def _sorted(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Nodes in an order in which each comes after what it takes; those that never can are left out."""
    done, left = list[onnx.NodeProto](), nodes
    while True:
        ready = [node for node in left if all(name in known or not name for name in node.input)]
        if not ready:
            return done
        done += ready
        known = known | {name for node in ready for name in node.output}
        chosen = {id(node) for node in ready}
        left = [node for node in left if id(node) not in chosen]
