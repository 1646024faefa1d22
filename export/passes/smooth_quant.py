"""Outliers of activations moved into weights, so that 8 bits hold both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from shipline.backends.base import Arrays
from shipline.errors import ConfigError
from shipline.export.passes.base import GraphPass, Material, quiet, refused
from shipline.export.passes.uses import used
from shipline.export.rows import in_batches

CALIBRATION_BATCH = 32

#: The norms, which scale each channel by a weight of its own; as last step of others, a Mul does.
_NORMS = ("LayerNormalization", "RMSNormalization")

Initializers = dict[str, onnx.TensorProto]


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(GraphPass):
    """Divides loud channels of activations by a scale each, and multiplies the weights that take them by it.

    The answers stay; a later pass to 8 bits loses less, since one scale for all channels fits them better. Scales go
    into the norm before the products, where nothing else takes what it gives, as in transformers that norm first; else
    a multiplication stands before the products.

    Args:
        alpha: how much of the loudness the weights take over: 0: none; 1: all.
        everywhere: smooth before all products with weights, such as those after activation functions, too: a
            multiplication for each.

    Source: https://arxiv.org/abs/2211.10438
    """

    alpha: float = 0.5
    everywhere: bool = False

    shrinks: ClassVar[bool] = False
    precision: ClassVar[str] = "float32-smooth"
    tolerance: ClassVar[float] = 1e-4
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha <= 1:
            raise ConfigError(f"SmoothQuant has alpha={self.alpha!r}; set a number from 0 to 1.")

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the smooth graph; GateError where it has no norm before products with weights."""
        rows = material.calibration()
        inputs = {spec.name: rows[spec.name] for spec in material.signature.inputs}
        try:
            graph = onnx.load_from_string(model)
            places = _places(graph.graph, everywhere=self.everywhere)
            if not places:
                raise ValueError("no product with weights takes what a norm gives")
            _smooth(graph.graph, places, _loudness(graph, places, inputs), self.alpha)
            return bytes(graph.SerializeToString())
        except Exception as error:  # whatever a user's graph holds
            raise refused("smooth", error) from error


def _places(graph: onnx.GraphProto, *, everywhere: bool) -> dict[str, list[onnx.NodeProto]]:
    """The tensors to be smoothed, each with the products that take it."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    places = defaultdict(list)
    for node in graph.node:
        source = made_by.get(node.input[0]) if _is_product(node, tensors) else None
        if source is not None and (everywhere or _norm(source, tensors) is not None):
            places[node.input[0]].append(node)
    return dict(places)


def _is_product(node: onnx.NodeProto, tensors: Initializers) -> bool:
    """Whether it is a product with a matrix of weights, of channels in the last dimension."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in tensors or _attribute(node, "transA"):
        return False
    weight = tensors[node.input[1]]
    return len(weight.dims) == 2 and weight.data_type == onnx.TensorProto.FLOAT


def _norm(node: onnx.NodeProto, tensors: Initializers) -> list[int] | None:
    """The inputs with weights for each channel, by which it scales what it gives; None where it is no norm."""
    if node.op_type in _NORMS:
        places = list(range(1, len(node.input)))
    elif node.op_type == "Mul":
        places = [i for i, name in enumerate(node.input) if name in tensors and tensors[name].dims]
    else:
        return None
    whole = places and all(node.input[i] in tensors and len(tensors[node.input[i]].dims) == 1 for i in places)
    return places if whole else None


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((each.i for each in node.attribute if each.name == name), 0)


def _by_channel(node: onnx.NodeProto, tensors: Initializers) -> np.ndarray:
    """The weights of a product, a row for each channel that it takes."""
    weight = numpy_helper.to_array(tensors[node.input[1]])
    return weight.T if _attribute(node, "transB") else weight


def _loudness(model: onnx.ModelProto, places: dict[str, list[onnx.NodeProto]], rows: Arrays) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of each place, over all rows.

    The graph itself finds it: activations of a whole network would not fit into the memory.
    """
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    graph, tensors = probe.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    graph.ClearField("output")
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "shipline.axes"))
    for name, products in places.items():
        width, made = len(_by_channel(products[0], tensors)), f"{name}.loudness"
        graph.initializer.append(numpy_helper.from_array(np.array([-1, width]), f"{name}.shape"))
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"{name}.abs"]),
                helper.make_node("Reshape", [f"{name}.abs", f"{name}.shape"], [f"{name}.rows"]),
                helper.make_node("ReduceMax", [f"{name}.rows", "shipline.axes"], [made], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, [width]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with quiet():
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run(None, batch) for batch in in_batches(rows, CALIBRATION_BATCH)]
    return {name: np.max(each, axis=0) for name, each in zip(places, zip(*found, strict=True), strict=True)}


def _scales(loudness: np.ndarray, products: list[onnx.NodeProto], tensors: Initializers, alpha: float) -> np.ndarray:
    """What each channel is divided by; channels that are silent, or that nobody takes, stay as they are."""
    weights = np.max([np.abs(_by_channel(node, tensors)).max(axis=1) for node in products], axis=0)
    heard = (loudness > 0) & (weights > 0) & np.isfinite(loudness)
    one = np.where(heard, loudness, 1).astype(np.float64)
    scales: np.ndarray = one**alpha / np.where(heard, weights, 1).astype(np.float64) ** (1 - alpha)
    return np.where(heard, scales, 1)


def _smooth(
    graph: onnx.GraphProto, places: dict[str, list[onnx.NodeProto]], loudness: dict[str, np.ndarray], alpha: float
) -> None:
    """Scale channels and weights, in the graph itself."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    uses = Counter([*used(graph), *(value.name for value in graph.output)])
    added = {}
    for name, products in places.items():
        scales = _scales(loudness[name], products, tensors, alpha)
        source = made_by[name]
        folded = _norm(source, tensors) if uses[name] == len(products) else None
        for node in products:
            factor = scales if _attribute(node, "transB") else scales[:, None]
            node.input[1] = _scaled(graph, tensors, node.input[1], factor, name)
        if folded is not None:
            for i in folded:
                source.input[i] = _scaled(graph, tensors, source.input[i], 1 / scales, name)
            continue
        inverse = numpy_helper.from_array((1 / scales).astype(np.float32), f"{name}.inverse")
        graph.initializer.append(inverse)
        added[name] = helper.make_node("Mul", [name, inverse.name], [f"{name}.smooth"], name=f"{name}.smooth")
        for node in products:
            node.input[0] = f"{name}.smooth"
    _put(graph, added)


def _scaled(graph: onnx.GraphProto, tensors: Initializers, name: str, factor: np.ndarray, place: str) -> str:
    """The name of a new tensor: this one, scaled for that place."""
    new = f"{name}.{place}.smooth"
    if new not in tensors:
        array = numpy_helper.to_array(tensors[name]).astype(np.float64) * factor
        tensors[new] = numpy_helper.from_array(array.astype(np.float32), new)
        graph.initializer.append(tensors[new])
    return new


def _put(graph: onnx.GraphProto, added: dict[str, onnx.NodeProto]) -> None:
    """Let each node follow what makes the tensor that it is for, and drop weights that nobody takes any more."""

    def following() -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            yield from (added[name] for name in node.output if name in added)

    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in following()]
    graph.ClearField("node")
    graph.node.extend(nodes)
    taken = {*used(graph), *(value.name for value in graph.output)}
    for tensor in [each for each in graph.initializer if each.name not in taken]:
        graph.initializer.remove(tensor)
