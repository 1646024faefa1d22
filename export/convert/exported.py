"""From a torch module to a program of torch.export."""

from __future__ import annotations

import io
from typing import Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from shipline.backends.torch import SIGNATURE
from shipline.export.convert.exporters import quiet, refused
from shipline.export.convert.tensors import advice_on, as_function, example_of, free_dimensions
from shipline.export.rows import Rows
from shipline.signature import Signature

# What is noted down at each operator for debugging: source lines, with the paths of this machine.
_NOTES = ("stack_trace", "from_node")


def to_exported(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"] = "float32"
) -> bytes:
    """Return the module as an archive of torch.export, without the example inputs that it would keep as a pickle.

    Raises:
        GateError: the module cannot be exported; the message is the exporter's.
    """
    program = program_of(module, rows, signature, compute)
    program.example_inputs = None
    file = io.BytesIO()
    with quiet("torch.export"):
        torch.export.save(program, file, extra_files={SIGNATURE: signature.model_dump_json()})
    return file.getvalue()


def program_of(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"]
) -> ExportedProgram:
    """Return the module as a graph, dynamic in its batch and in a free length, that names no path of this machine.

    Raises:
        GateError: the module cannot be exported; the message is the exporter's.
    """
    example = example_of(rows, signature)
    try:
        with quiet("torch.export"), torch.no_grad():
            most = max(tensor.shape[1] if tensor.ndim > 1 else 1 for tensor in example)
            dimensions = {"batch": Dim("batch", min=1), "length": Dim("length", min=2, max=most)}
            free = [{at: dimensions[name] for at, name in each.items()} for each in free_dimensions(signature)]
            program = torch.export.export(
                as_function(module, rows, signature, compute),
                example,
                dynamic_shapes=(tuple(free),),
            )
    except Exception as error:  # whatever the exporter meets in a user's module
        raise refused(module, "exported with torch.export", error, advice_on(error, signature)) from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            for note in _NOTES:
                node.meta.pop(note, None)
    return program
