"""From a torch module to a float32 ONNX graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import onnx
import torch
from torch import nn

from shipline.errors import GateError
from shipline.export.rows import Rows
from shipline.signature import Signature


def to_onnx(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"] = "float32"
) -> bytes:
    """Return the module as one self-contained float32 ONNX file, dynamic in its batch dimension.

    What it is computed in, runtimes of ONNX decide by their settings.

    The exporter is torch.onnx's, through torch.export (`dynamo=True`). The example has two rows: with one, it would
    quietly fix the batch at 1.

    Raises:
        GateError: the module cannot be exported; the message is the exporter's.
    """
    names = [spec.name for spec in signature.inputs]
    example = {name: torch.from_numpy(rows.inputs[name][:1].repeat(2, axis=0)) for name in names}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=example,
                input_names=names,
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes={name: {0: "batch"} for name in names},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        model = _without_traces(program.model_proto)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever the exporter meets in a user's module
        root = _root_of(error)
        raise GateError(
            f"{type(module).__name__} cannot be exported to ONNX, so nothing was published: {type(root).__name__}: "
            f"{str(root).strip()[:800]}"
        ) from error
    return bytes(model.SerializeToString())


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


def _root_of(error: BaseException) -> BaseException:
    """The first cause: what the exporter wraps around it says how to debug the exporter."""
    return error if error.__cause__ is None else _root_of(error.__cause__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says of itself: deprecations inside torch, optional packages that it looks for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
