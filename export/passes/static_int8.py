"""8 bits for weights and activations, with scales that are measured beforehand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from shipline.backends.base import Arrays
from shipline.errors import ConfigError
from shipline.export.passes.base import GraphPass, Material
from shipline.export.passes.quantiser import quantised
from shipline.export.processor import cuts_sums
from shipline.export.rows import in_batches

CALIBRATION_BATCH = 8  # a graph that is measured keeps much more in memory than one that answers

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives onnxruntime the calibration rows, in batches."""

    def __init__(self, rows: Arrays) -> None:
        self._batches = in_batches(rows, CALIBRATION_BATCH)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@dataclass(frozen=True, kw_only=True)
class StaticInt8(GraphPass):
    """int8 weights and uint8 activations, as QuantizeLinear pairs (QDQ).

    uint8 activations with int8 weights are what onnxruntime's CPU kernels are fast with; int8 activations are many
    times slower there. The outputs stay float.

    Args:
        calibration: how scales follow from the calibration rows: "minmax", "entropy" or "percentile".
        per_channel: a scale for each channel of a weight.
        reduce_range: 7 bits for weights. Processors without VNNI or AMX add pairs of products in 16 bits, which cuts
            large sums; with these weights there are none, and all answer alike. Default: where this one needs it.
        op_types: quantise only these operators, such as Conv and MatMul; default: all that can be.
        keep_float: names of nodes to leave as they are.
    """

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = True
    reduce_range: bool | None = None
    op_types: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()

    #: Whether the results of quantised nodes are rounded wherever they go, or only where another takes them.
    rounds_outputs: ClassVar[bool] = True

    precision: ClassVar[str] = "int8"
    tolerance: ClassVar[float] = 5e-2
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.calibration not in _METHODS:
            raise ConfigError(f"StaticInt8 has calibration={self.calibration!r}; choose one of {', '.join(_METHODS)}.")

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the quantised graph; GateError where it cannot be."""
        rows = material.calibration()
        inputs = {spec.name: rows[spec.name] for spec in material.signature.inputs}

        prepared, small = quantised(
            model, self.precision, lambda prepared, small: self._write(prepared, small, inputs, material)
        )
        return _float_outputs(small, prepared)

    def _write(self, prepared: str, small: str, rows: Arrays, material: Material) -> None:
        """Write the quantised graph of one file to the other."""
        self._quantise(prepared, small, rows, self.keep_float)

    def _quantise(
        self, prepared: str, small: str, rows: Arrays, keep_float: tuple[str, ...], scales: str | None = None
    ) -> None:
        """Call the library; it reads what it has measured of the rows from the file `scales`, once that is there."""
        quantize_static(
            prepared,
            small,
            _Reader(rows),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=self.per_channel,
            reduce_range=cuts_sums() if self.reduce_range is None else self.reduce_range,
            calibrate_method=_METHODS[self.calibration],
            op_types_to_quantize=list(self.op_types) or None,
            nodes_to_exclude=list(keep_float),
            calibration_cache_path=scales,
            extra_options={"OpTypesToExcludeOutputQuantization": [] if self.rounds_outputs else list(self.op_types)},
        )


def _float_outputs(data: bytes, plain: bytes) -> bytes:
    """Take away the QDQ pairs at the very end: they save nothing, and clip answers beyond the calibrated range."""
    model = onnx.load_from_string(data)
    nodes, outputs = model.graph.node, {output.name for output in model.graph.output}
    made_by, made_plain_by = _made_by(model), _made_by(onnx.load_from_string(plain))
    for last in [node for node in nodes if node.op_type == "DequantizeLinear" and node.output[0] in outputs]:
        first = made_by.get(last.input[0])
        source = made_by.get(first.input[0]) if first is not None and first.op_type == "QuantizeLinear" else None
        if first is None or source is None or sum(first.input[0] in node.input for node in nodes) > 1:
            continue
        intended = made_plain_by[last.output[0]]
        if intended.op_type == source.op_type:
            source.output[list(source.output).index(first.input[0])] = last.output[0]
            nodes.remove(last)
        elif intended.op_type == "Relu":  # dropped by the quantiser, because the pair clips at 0, too
            last.CopyFrom(intended)
            last.input[0] = first.input[0]
        else:
            continue  # a Clip, whose bounds the pair keeps
        nodes.remove(first)
    used = {name for node in nodes for name in node.input}
    for unused in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(unused)
    _shorten(model.graph)
    return bytes(model.SerializeToString())


def _shorten(graph: onnx.GraphProto) -> None:
    """Give what the quantiser has added short names: of a small network its own are a twentieth of the file."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a branch may take any of them
    pairs = [node for node in graph.node if node.op_type in _PAIR]
    others = {name for node in graph.node if node.op_type not in _PAIR for name in node.output}
    others |= {value.name for value in (*graph.input, *graph.output)}
    added = dict.fromkeys(name for node in pairs for name in (*node.input, *node.output) if name not in others)
    taken = others | {tensor.name for tensor in graph.initializer}
    short = dict(zip(added, (name for i in itertools.count() if (name := f"q{i}") not in taken), strict=False))
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [short.get(name, name) for name in field]
    for node in pairs:
        node.name = ""
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    graph.ClearField("value_info")


def _made_by(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}
