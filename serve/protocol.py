"""The Open Inference Protocol v2 in JSON: bodies to arrays and back.

https://github.com/kserve/open-inference-protocol. Where the text leaves room, input is taken strictly: a number must be
a number of the declared kind, a shape must hold what it says, and what the protocol does not know is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from shipline.backends.base import Arrays
from shipline.serve.errors import bad
from shipline.signature import Signature, TensorSpec

MAX_DEPTH = 100

_REQUEST_FIELDS = frozenset({"id", "inputs", "outputs", "parameters"})
_INPUT_FIELDS = frozenset({"name", "shape", "datatype", "data", "parameters"})
_OUTPUT_FIELDS = frozenset({"name", "parameters"})
_NUMBERS = frozenset({int, float})
_WHOLE = frozenset({int})
_TRUTHS = frozenset({bool})


@dataclass(slots=True)
class InferRequest:
    """A request, checked against the model's signature."""

    id: str | None
    inputs: Arrays
    rows: int
    outputs: list[str]


def parse_json(body: bytes) -> Any:
    """Return the document; RequestError 400 unless it is JSON (RFC 8259) of at most MAX_DEPTH levels."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"The body is no valid JSON: {error.msg.partition(':')[0]}, at byte {error.pos}.") from None
    # Fewer brackets than levels allowed is the common case, and cheap to see.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deeper_than(document, MAX_DEPTH):
        raise bad(f"The JSON is nested more than {MAX_DEPTH} levels deep.")
    return document


def parse_infer(body: bytes, signature: Signature) -> InferRequest:
    """Return the request in `body`.

    Raises:
        RequestError: 400; the text names the tensor, what was expected and what came.
    """
    document = parse_json(body)
    if type(document) is not dict:
        raise bad(f"The body must be a JSON object; got {_kind(document)}.")
    if not document.keys() <= _REQUEST_FIELDS:
        raise _unknown("the request", document, _REQUEST_FIELDS)
    identity = document.get("id")
    if identity is not None and type(identity) is not str:
        raise bad(f"'id' must be a string; got {_kind(identity)}.")
    _check_parameters(document, "the request")
    inputs = _inputs(document.get("inputs"), signature)
    rows = _common_rows(inputs)
    return InferRequest(identity, inputs, rows, _outputs(document.get("outputs"), signature))


def infer_response(name: str, version: str, request: InferRequest, outputs: Arrays, signature: Signature) -> bytes:
    """Return the response's body. NaN and infinities, which JSON cannot hold, are written as null."""
    described = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": outputs[spec.name].shape,
            "data": np.ascontiguousarray(outputs[spec.name]).ravel(),
        }
        for spec in signature.outputs
        if spec.name in request.outputs
    ]
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = described
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def predict_response(name: str, version: str, answer: Any) -> dict[str, Any]:
    """Return the response to a raw input: the answer's own fields, or the answer as `output` where it has none."""
    named = answer if isinstance(answer, dict) else {"output": answer}
    return {"model_name": name, "model_version": version, **named}


def _inputs(items: Any, signature: Signature) -> Arrays:
    if type(items) is not list:
        raise bad(f"'inputs' must be a list of tensors; got {_kind(items)}.")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: Arrays = {}
    for item in items:
        if type(item) is not dict:
            raise bad(f"Each of 'inputs' must be an object; got {_kind(item)}.")
        if not item.keys() <= _INPUT_FIELDS:
            raise _unknown("an input", item, _INPUT_FIELDS)
        name = item.get("name")
        spec = specs.get(name) if type(name) is str else None
        if spec is None:
            raise bad(f"Unknown input {_short(name)}; known: {', '.join(specs)}.")
        if spec.name in arrays:
            raise bad(f"Input {spec.name!r} is given twice.")
        arrays[spec.name] = _tensor(item, spec)
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise bad(f"Missing input {spec.name!r} ({spec.datatype}, shape {list(spec.shape)}).")
    return arrays


def _tensor(item: dict[str, Any], spec: TensorSpec) -> np.ndarray:
    _check_parameters(item, f"input {spec.name!r}")
    if item.get("datatype") != spec.datatype:
        raise bad(f"Input {spec.name!r} must be {spec.datatype}; got {_short(item.get('datatype'))}.")
    shape = _shape(item.get("shape"), spec)
    data = item.get("data")
    if type(data) is not list:
        raise bad(f"Input {spec.name!r} needs its numbers in a list 'data'; got {_kind(data)}.")
    if data and type(data[0]) is list:
        data = _flat(data, shape, spec)
    if len(data) != math.prod(shape):
        raise bad(
            f"Input {spec.name!r} has {len(data)} values for shape {list(shape)}, which holds {math.prod(shape)}."
        )
    return _array(data, spec).reshape(shape)


def _shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    if type(shape) is not list or not set(map(type, shape)) <= _WHOLE or any(size < 1 for size in shape):
        raise bad(f"Input {spec.name!r} must have a shape of whole numbers from 1; got {_short(shape)}.")
    if not spec.matches(tuple(shape)):
        raise bad(f"Input {spec.name!r} must have shape {list(spec.shape)}; got {_short(shape)}.")
    return tuple(shape)


def _flat(data: list[Any], shape: tuple[int, ...], spec: TensorSpec) -> list[Any]:
    """Return nested lists row by row, one list; every list must be as long as the shape says."""
    level = data
    for dimension, size in enumerate(shape):
        if dimension:
            level = list(chain.from_iterable(level))
        inner = dimension + 1 < len(shape)
        if dimension == 0 and len(level) != size:
            raise bad(f"Input {spec.name!r} has {len(level)} rows for shape {list(shape)}.")
        if inner and not all(type(item) is list and len(item) == shape[dimension + 1] for item in level):
            raise bad(f"Input {spec.name!r} has nested lists that do not have the shape {list(shape)}.")
    return level


def _array(data: list[Any], spec: TensorSpec) -> np.ndarray:
    """Return the numbers as an array of the declared dtype, where each is one of that kind and in its range."""
    dtype = np.dtype(spec.dtype)
    allowed = _NUMBERS if dtype.kind == "f" else _TRUTHS if dtype.kind == "b" else _WHOLE
    found = set(map(type, data))
    if not found <= allowed:
        wrong = next(value for value in data if type(value) not in allowed)
        raise bad(f"Input {spec.name!r} is {spec.datatype}; got {_short(wrong)} among its values.")
    try:
        with np.errstate(over="ignore"):
            array = np.array(data, dtype)
    except OverflowError:
        raise bad(f"Input {spec.name!r} has a value that is out of range for {spec.datatype}.") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise bad(f"Input {spec.name!r} has a value that is out of range for {spec.datatype}.")
    return array


def _common_rows(inputs: Arrays) -> int:
    rows: set[int] = {array.shape[0] for array in inputs.values()}
    if len(rows) > 1:
        sizes = {name: array.shape[0] for name, array in inputs.items()}
        raise bad(f"All inputs must have the same number of rows; got {sizes}.")
    return rows.pop()


def _outputs(items: Any, signature: Signature) -> list[str]:
    known = [spec.name for spec in signature.outputs]
    if items is None or items == []:
        return known
    if type(items) is not list:
        raise bad(f"'outputs' must be a list; got {_kind(items)}.")
    chosen: list[str] = []
    for item in items:
        if type(item) is not dict or not item.keys() <= _OUTPUT_FIELDS:
            raise bad("Each of 'outputs' must be an object with a name and, at most, parameters.")
        _check_parameters(item, "an output")
        if item.get("name") not in known:
            raise bad(f"Unknown output {_short(item.get('name'))}; known: {', '.join(known)}.")
        chosen.append(item["name"])
    return chosen


def _check_parameters(holder: dict[str, Any], where: str) -> None:
    parameters = holder.get("parameters")
    if parameters is None:
        return
    if type(parameters) is not dict or any(isinstance(value, dict | list) for value in parameters.values()):
        raise bad(f"The parameters of {where} must be an object of strings, numbers and booleans.")
    for name in ("binary_data_size", "shared_memory_region"):
        if name in parameters:
            raise bad(f"{where} has the parameter {name!r}; tensors are taken as JSON here.")


def _deeper_than(document: Any, limit: int) -> bool:
    level: Iterable[Any] = [document]
    for _ in range(limit):
        level = [
            value
            for item in level
            if type(item) in (dict, list)
            for value in (item.values() if type(item) is dict else item)
            if type(value) in (dict, list)
        ]
        if not level:
            return False
    return True


def _unknown(where: str, found: Mapping[str, Any], known: frozenset[str]) -> Exception:
    name = next(name for name in found if name not in known)
    return bad(f"Unknown field {_short(name)} in {where}; known: {', '.join(sorted(known))}.")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _short(value: Any) -> str:
    """Return a value as it may stand in a message: not long, and without control characters."""
    if isinstance(value, dict) or (isinstance(value, list) and len(value) > 16):
        return _kind(value)
    return repr(value)[:80]
