"""ModelInfer's messages to arrays and back: tensors as raw bytes or, of requests, as typed contents; one of them.

Taken as strictly as over HTTP, and refused with the same texts. Answers are raw, as Triton's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shipline.backends.base import Arrays
from shipline.serve.errors import bad
from shipline.serve.grpc.messages import message
from shipline.serve.jobs import NORMAL
from shipline.serve.parameters import NOT_HERE, terms
from shipline.serve.tensors import check_shape, common_rows, from_raw, short, to_raw
from shipline.signature import BYTES, Signature, TensorSpec

ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")

# Where the protocol puts a tensor's values; float16 has no such place.
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    BYTES: "bytes_contents",
}


@dataclass(slots=True)
class InferRequest:
    """A request, checked against the model's signature."""

    id: str
    inputs: Arrays
    rows: int
    outputs: list[str]
    priority: int = NORMAL
    timeout_s: float | None = None


def parse_infer(request: Any, signature: Signature) -> InferRequest:
    """Return what a ModelInferRequest asks for.

    Args:
        request: the message.
        signature: what the model takes.

    Raises:
        RequestError: 400; the text names the tensor, what was expected and what came.
    """
    parameters = _parameters(request.parameters, "the request")
    inputs = _inputs(request, signature)
    rows = common_rows(inputs)
    return InferRequest(request.id, inputs, rows, _outputs(request, signature), *terms(parameters))


def infer_response(name: str, version: str, request: InferRequest, outputs: Arrays, signature: Signature) -> Any:
    """Return the ModelInferResponse with the outputs that were asked for."""
    response = ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for spec in signature.outputs:
        if spec.name in request.outputs:
            array = outputs[spec.name]
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            response.raw_output_contents.append(bytes(to_raw(array)))
    return response


def _inputs(request: Any, signature: Signature) -> Arrays:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad(f"raw_input_contents has {len(raw)} tensors for {len(request.inputs)} inputs.")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: Arrays = {}
    for number, item in enumerate(request.inputs):
        spec = specs.get(item.name)
        if spec is None:
            raise bad(f"Unknown input {short(item.name)}; known: {', '.join(specs)}.")
        if spec.name in arrays:
            raise bad(f"Input {spec.name!r} is given twice.")
        arrays[spec.name] = _tensor(item, raw[number] if raw else None, spec)
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise bad(f"Missing input {spec.name!r} ({spec.datatype}, shape {list(spec.shape)}).")
    return arrays


def _tensor(item: Any, raw: bytes | None, spec: TensorSpec) -> np.ndarray:
    _parameters(item.parameters, f"input {spec.name!r}")
    if item.datatype != spec.datatype:
        raise bad(f"Input {spec.name!r} must be {spec.datatype}; got {short(item.datatype)}.")
    shape = check_shape(list(item.shape), spec)
    if raw is None:
        return _typed(item.contents, shape, spec)
    if item.contents.ListFields():
        raise bad(f"Input {spec.name!r} has both contents and raw_input_contents; send one of them.")
    return from_raw(raw, shape, spec)


def _typed(contents: Any, shape: tuple[int, ...], spec: TensorSpec) -> np.ndarray:
    """Return the values of typed contents; all of them must lie where those of the datatype belong."""
    field = _CONTENTS.get(spec.dtype)
    if field is None:
        raise bad(f"Input {spec.name!r} is {spec.datatype}, which has no typed contents; send raw_input_contents.")
    for found, _ in contents.ListFields():
        if found.name != field:
            raise bad(f"Input {spec.name!r} is {spec.datatype}, whose values belong in {field}; got {found.name}.")
    values = list(getattr(contents, field))
    if len(values) != math.prod(shape):
        raise bad(
            f"Input {spec.name!r} has {len(values)} values for shape {list(shape)}, which holds {math.prod(shape)}."
        )
    try:
        return np.array(values, spec.dtype).reshape(shape)
    except OverflowError:
        raise bad(f"Input {spec.name!r} has a value that is out of range for {spec.datatype}.") from None


def _outputs(request: Any, signature: Signature) -> list[str]:
    known = [spec.name for spec in signature.outputs]
    for item in request.outputs:
        _parameters(item.parameters, "an output")
        if item.name not in known:
            raise bad(f"Unknown output {short(item.name)}; known: {', '.join(known)}.")
    return [item.name for item in request.outputs] or known


def _parameters(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in NOT_HERE & parameters.keys():
        raise bad(f"{where} has the parameter {name!r}, which this server does not have.")
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in parameters.items()
    }
