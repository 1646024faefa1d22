"""From a torch module to a float32 ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from shipline.errors import GateError
from shipline.export.convert.exporters import quiet, refused, root_of
from shipline.export.convert.tensors import advice_on, example_of, free_dimensions
from shipline.export.rows import Rows
from shipline.signature import Signature

#: The line of the user's code that torch.export stopped at.
_CALL = re.compile(r'call raised this error:\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n(?P<code>.*)')
_OUTPUT = "shipline.output."
#: What a message of protobuf, and so a file of ONNX, can be.
_LARGEST = (1 << 31) - 1
#: Why modules in half precision cannot be proved as they are.
_HALVES = {
    torch.bfloat16: "has none of its operators for them on a CPU",
    torch.float16: "rounds what it computes with them elsewhere than torch does",
}


def to_onnx(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"] = "float32"
) -> bytes:
    """Return the module as one self-contained float32 ONNX file, dynamic in its batch and in a free length.

    What it is computed in, runtimes of ONNX decide by their settings.

    The exporter is torch.onnx's, through torch.export (`dynamo=True`). The example has two rows: with one, it would
    quietly fix the batch at 1.

    Raises:
        GateError: the module cannot be exported; the message is the exporter's.
    """
    _check_weights(module)
    names = [spec.name for spec in signature.inputs]
    example = dict(zip(names, example_of(rows, signature), strict=True))
    try:
        with quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=example,
                input_names=names,
                output_names=[f"{_OUTPUT}{number}" for number in range(len(signature.outputs))],
                dynamic_shapes=dict(zip(names, free_dimensions(signature), strict=True)),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        _name_outputs(program, [spec.name for spec in signature.outputs])
        model = bytes(_without_traces(program.model_proto).SerializeToString())
        del program
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever the exporter meets in a user's module
        root = root_of(error)
        if isinstance(root, GuardOnDataDependentSymNode):
            raise GateError(_depends_on_values(module, root)) from error
        raise refused(module, "exported to ONNX", error, advice_on(root, signature)) from error
    return model


def _check_weights(module: nn.Module) -> None:
    """Before the exporter has worked for minutes, and taken several times as much memory."""
    weights = (*module.parameters(), *module.buffers())
    for dtype, why in _HALVES.items():
        if any(tensor.dtype == dtype for tensor in weights):
            name = str(dtype).removeprefix("torch.")
            raise GateError(
                f"{type(module).__name__} has weights in {name}, and onnxruntime, by which every export is proved, "
                f"{why}. Nothing was published. Give the module in float32 (`module.float()`); precision='{name}' "
                "exports it in that."
            )
    size = sum(tensor.nbytes for tensor in weights)
    if size >= _LARGEST:
        raise GateError(
            f"{type(module).__name__} has {size:,} bytes of weights, and a file of ONNX, by which every export is "
            f"proved, holds {_LARGEST:,} at most. Nothing was published. Export a smaller or a pruned module, or its "
            "parts one by one."
        )


def _name_outputs(program: Any, names: list[str]) -> None:
    """Call the outputs what the signature calls them, and what is called so inside otherwise.

    The exporter names what is inside after operators, such as `embedding`, and does not see that an output is, too.
    """
    outputs = list(program.model.graph.outputs)
    for node in program.model.graph.all_nodes():
        for value in node.outputs:
            if value.name in names and not any(value is output for output in outputs):
                value.name = f"{value.name}.inside"
    for value, name in zip(outputs, names, strict=True):
        value.name = name


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter notes down for debugging: it holds paths of this machine, and stale shapes."""
    for part in (model, *_parts(model.graph), *(part for function in model.functions for part in _parts(function))):
        for field in ("metadata_props", "doc_string", "value_info"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)
    return model


def _parts(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[Any]:
    """The body and everything in it that carries notes; the branches of its If and Loop nodes, too."""
    yield body
    if isinstance(body, onnx.GraphProto):
        yield from (*body.input, *body.output, *body.initializer)
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _parts(inner)


def _depends_on_values(module: nn.Module, error: Exception) -> str:
    found = _CALL.search(str(error))
    where = f" at {Path(found['file']).name}:{found['line']}" if found else ""
    where += f", `{found['code'].strip()}`" if found and found["code"].strip() else ""
    return (
        f"forward of {type(module).__name__} decides by the values of its inputs{where}; a graph takes the same way "
        "for all. Nothing was published. Write it for all rows alike, with torch.where or torch.cond."
    )
