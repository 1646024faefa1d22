"""From a float32 ONNX graph to one of 8 bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from shipline.errors import GateError
from shipline.export.rows import Arrays, Rows
from shipline.signature import Signature

CALIBRATION_BATCH = 32


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: Arrays) -> None:
        count = len(next(iter(rows.values())))
        starts = range(0, count, CALIBRATION_BATCH)
        self._batches = iter([{name: array[i : i + CALIBRATION_BATCH] for name, array in rows.items()} for i in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def to_int8(model: bytes, rows: Rows, signature: Signature) -> bytes:
    """Return the graph with int8 weights, a scale a channel, and uint8 activations, as QuantizeLinear pairs (QDQ).

    Activation scales are the smallest and largest values (MinMax) over the calibration rows. uint8 activations with
    int8 weights are what onnxruntime's CPU kernels are fast with; int8 activations are many times slower there.

    Raises:
        GateError: the graph cannot be quantised.
    """
    inputs = {spec.name: rows.inputs[spec.name] for spec in signature.inputs}
    with tempfile.TemporaryDirectory(prefix="shipline-int8-") as scratch:
        plain, prepared, quantised = (Path(scratch) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        plain.write_bytes(model)
        try:
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantised),
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        except Exception as error:  # whatever the quantiser meets in a user's graph
            raise GateError(
                f"The graph cannot be quantised to int8, so nothing was published: {type(error).__name__}: "
                f"{str(error).strip()[:800]} Use precision: float32."
            ) from error
        return _float_outputs(quantised.read_bytes(), prepared.read_bytes())


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
    return bytes(model.SerializeToString())


def _made_by(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}
