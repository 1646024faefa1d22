"""The Open Inference Protocol v2 in JSON, with its binary tensors: bodies to arrays and back.

https://github.com/kserve/open-inference-protocol. Where the text leaves room, input is taken strictly: a number must be
a number of the declared kind, a shape must hold what it says, and what the protocol does not know is refused. In the
binary form (Triton's binary tensor data extension) the JSON is followed by the tensors' bytes, in the order in which
the JSON names them: nothing is read or written one number at a time.
"""

from __future__ import annotations

import math
from array import array as packed_floats
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from shipline.backends.base import Arrays
from shipline.serve.errors import bad
from shipline.serve.http.document import parse_tensors
from shipline.serve.jobs import NORMAL
from shipline.serve.parameters import NOT_HERE, terms
from shipline.serve.tensors import check_shape, common_rows, from_raw, kind, short, to_raw
from shipline.signature import BYTES, Signature, TensorSpec

_REQUEST_FIELDS = frozenset({"id", "inputs", "model_name", "outputs", "parameters"})
_INPUT_FIELDS = frozenset({"name", "shape", "datatype", "data", "parameters"})
_OUTPUT_FIELDS = frozenset({"name", "parameters"})
_NUMBERS = frozenset({int, float})
_WHOLE = frozenset({int})
_TRUTHS = frozenset({bool})
_TEXTS = frozenset({str})
_ALLOWED = {"f": _NUMBERS, "i": _WHOLE, "u": _WHOLE, "b": _TRUTHS, "O": _TEXTS}
# Numbers from here on are no finite ones of the dtype, once they are rounded.
_ENDS = {"float16": 65520.0, "float32": 2.0**128 - 2.0**103, "float64": math.inf}


@dataclass(slots=True)
class InferRequest:
    """A request, checked against the model's signature."""

    id: str | None
    inputs: Arrays
    rows: int
    outputs: list[str]
    binary: frozenset[str] = frozenset()  # those of the outputs that are sent as bytes behind the JSON
    priority: int = NORMAL
    timeout_s: float | None = None


class _Raw:
    """The bytes behind the JSON, taken piece by piece."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: Any, where: str) -> memoryview:
        """Return the next `size` bytes."""
        if type(size) is not int or not 0 <= size <= len(self._data) - self._at:
            raise bad(
                f"{where}: binary_data_size is {short(size)}, and {len(self._data) - self._at} bytes are left behind "
                "the JSON."
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def check_end(self) -> None:
        """Raise RequestError 400 where bytes are left over."""
        if self._at != len(self._data):
            raise bad(f"{len(self._data) - self._at} bytes behind the JSON belong to no input.")


def parse_infer(
    body: bytes, signature: Signature, json_length: int | None = None, model: str | None = None
) -> InferRequest:
    """Return the request in `body`.

    Args:
        body: JSON; or JSON and the bytes of tensors.
        signature: what the model takes.
        json_length: bytes of the JSON; None is all.
        model: its name. The protocol has none in a request; KServe's client says it again, and may say no other.

    Raises:
        RequestError: 400; the text names the tensor, what was expected and what came.
    """
    raw = _Raw(b"")
    if json_length is not None:
        if json_length > len(body):
            raise bad(f"The JSON is said to have {json_length} bytes; the whole body has {len(body)}.")
        body, raw = body[:json_length], _Raw(memoryview(body)[json_length:])
    document = parse_tensors(body)
    if type(document) is not dict:
        raise bad(f"The body must be a JSON object; got {kind(document)}.")
    if not document.keys() <= _REQUEST_FIELDS:
        raise _unknown("the request", document, _REQUEST_FIELDS)
    identity = document.get("id")
    if identity is not None and type(identity) is not str:
        raise bad(f"'id' must be a string; got {kind(identity)}.")
    if document.get("model_name", model) != model:
        raise bad(f"'model_name' is {short(document['model_name'])}, and the address is another model's.")
    parameters = _parameters(document, "the request")
    inputs = _inputs(document.get("inputs"), signature, raw)
    raw.check_end()
    outputs, binary = _outputs(document.get("outputs"), signature, _flag(parameters, "binary_data_output"))
    rows = common_rows(inputs)
    return InferRequest(identity, inputs, rows, outputs, binary, *terms(parameters))


def nested_tensor(data: list[Any], spec: TensorSpec) -> np.ndarray:
    """Return lists within lists as the input that they are; the shape is that of the first of each."""
    shape, level = [], data
    for _ in spec.shape:
        if type(level) is not list or not level:
            break
        shape.append(len(level))
        level = level[0]
    return _tensor({"datatype": spec.datatype, "shape": shape, "data": data}, spec, _Raw(b""))


def infer_response(
    name: str, version: str, request: InferRequest, outputs: Arrays, signature: Signature
) -> tuple[bytes, int | None]:
    """Return the response's body, and the bytes of its JSON where tensors follow it.

    NaN and infinities, which JSON cannot hold, are written as null; so are bytes that are no UTF-8, as U+FFFD.
    """
    described: list[dict[str, Any]] = []
    pieces: list[bytes | memoryview] = [b""]
    for spec in signature.outputs:
        if spec.name not in request.outputs:
            continue
        array = outputs[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if spec.name in request.binary:
            pieces.append(to_raw(array))
            tensor["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            tensor["data"] = _written(array)
        described.append(tensor)
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = described
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not request.binary:
        return head, None
    pieces[0] = head
    return b"".join(pieces), len(head)


def _written(array: np.ndarray) -> Any:
    """Return the values as orjson takes them."""
    if array.dtype == np.object_:
        return [value if isinstance(value, str) else value.decode(errors="replace") for value in array.ravel()]
    return np.ascontiguousarray(array).ravel()


def predict_response(name: str, version: str, answer: Any) -> dict[str, Any]:
    """Return the response to a raw input: the answer's own fields, or the answer as `output` where it has none."""
    named = answer if isinstance(answer, dict) else {"output": answer}
    return {"model_name": name, "model_version": version, **named}


def _inputs(items: Any, signature: Signature, raw: _Raw) -> Arrays:
    if type(items) is not list:
        raise bad(f"'inputs' must be a list of tensors; got {kind(items)}.")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: Arrays = {}
    for item in items:
        if type(item) is not dict:
            raise bad(f"Each of 'inputs' must be an object; got {kind(item)}.")
        if not item.keys() <= _INPUT_FIELDS:
            raise _unknown("an input", item, _INPUT_FIELDS)
        name = item.get("name")
        spec = specs.get(name) if type(name) is str else None
        if spec is None:
            raise bad(f"Unknown input {short(name)}; known: {', '.join(specs)}.")
        if spec.name in arrays:
            raise bad(f"Input {spec.name!r} is given twice.")
        arrays[spec.name] = _tensor(item, spec, raw)
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise bad(f"Missing input {spec.name!r} ({spec.datatype}, shape {list(spec.shape)}).")
    return arrays


def _tensor(item: dict[str, Any], spec: TensorSpec, raw: _Raw) -> np.ndarray:
    parameters = _parameters(item, f"input {spec.name!r}")
    if item.get("datatype") != spec.datatype:
        raise bad(f"Input {spec.name!r} must be {spec.datatype}; got {short(item.get('datatype'))}.")
    shape = check_shape(item.get("shape"), spec)
    data = item.get("data")
    if "binary_data_size" in parameters:
        if data is not None:
            raise bad(f"Input {spec.name!r} has both 'data' and binary_data_size; send one of them.")
        return from_raw(raw.take(parameters["binary_data_size"], f"Input {spec.name!r}"), shape, spec)
    if type(data) is np.ndarray:
        return _narrowed(_counted(data, shape, spec), spec).reshape(shape)
    if type(data) is not list:
        raise bad(f"Input {spec.name!r} needs its numbers in a list 'data'; got {kind(data)}.")
    if data and type(data[0]) is list:
        data = _flat(data, shape, spec)
    return _array(_counted(data, shape, spec), spec).reshape(shape)


def _counted(data: Any, shape: tuple[int, ...], spec: TensorSpec) -> Any:
    """Return the numbers, if they are as many as the shape holds."""
    if len(data) != math.prod(shape):
        raise bad(
            f"Input {spec.name!r} has {len(data)} values for shape {list(shape)}, which holds {math.prod(shape)}."
        )
    return data


def _narrowed(data: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return an array of the declared dtype, where each number is in its range."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = data.astype(dtype)
        fits = bool(np.isfinite(array).all())
    else:
        limits = np.iinfo(dtype)
        fits = bool(limits.min <= int(data.min()) and int(data.max()) <= limits.max)
        array = data.astype(dtype)
    if not fits:
        raise _out_of_range(spec)
    return array


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
    allowed = _ALLOWED[dtype.kind]
    if not allowed.issuperset(map(type, data)):
        wrong = next(value for value in data if type(value) not in allowed)
        raise bad(f"Input {spec.name!r} is {spec.datatype}; got {short(wrong)} among its values.")
    if spec.dtype == BYTES:
        return _texts(data, spec)
    try:
        if dtype.kind == "f" and not _all_below(data, _ENDS[spec.dtype]):
            raise _out_of_range(spec)
        if spec.dtype == "float32":  # twice as fast as numpy, and nearly everybody's
            return np.frombuffer(packed_floats("f", data), np.float32)
        return np.array(data, dtype)
    except OverflowError:
        raise _out_of_range(spec) from None


def _all_below(data: list[float], end: float) -> bool:
    """Whether each number is below `end`, and above its opposite: all are where their root sum of squares is, too."""
    return math.hypot(*data) < end or (-end < min(data) and max(data) < end)


def _out_of_range(spec: TensorSpec) -> Exception:
    return bad(f"Input {spec.name!r} has a value that is out of range for {spec.datatype}.")


def _texts(data: list[str], spec: TensorSpec) -> np.ndarray:
    array = np.empty(len(data), object)
    array[:] = [text.encode() for text in data]
    if any(b"\0" in text for text in array):
        raise bad(f"Input {spec.name!r} has a NUL in a string of its JSON; send such bytes as binary data.")
    return array


def _outputs(items: Any, signature: Signature, binary: bool | None) -> tuple[list[str], frozenset[str]]:
    """Return the outputs that are wanted, and those of them that are wanted as bytes."""
    known = [spec.name for spec in signature.outputs]
    if items is None or items == []:
        return known, frozenset(known if binary else ())
    if type(items) is not list:
        raise bad(f"'outputs' must be a list; got {kind(items)}.")
    chosen: list[str] = []
    raw: set[str] = set()
    for item in items:
        if type(item) is not dict or not item.keys() <= _OUTPUT_FIELDS:
            raise bad("Each of 'outputs' must be an object with a name and, at most, parameters.")
        own = _flag(_parameters(item, "an output"), "binary_data")
        name = item.get("name")
        if name not in known:
            raise bad(f"Unknown output {short(name)}; known: {', '.join(known)}.")
        chosen.append(name)
        if binary if own is None else own:
            raw.add(name)
    return chosen, frozenset(raw)


def _parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict or any(isinstance(value, dict | list) for value in parameters.values()):
        raise bad(f"The parameters of {where} must be an object of strings, numbers and booleans.")
    for name in NOT_HERE & parameters.keys():
        raise bad(f"{where} has the parameter {name!r}, which this server does not have.")
    return parameters


def _flag(parameters: dict[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise bad(f"The parameter {name!r} must be true or false; got {short(value)}.")
    return value


def _unknown(where: str, found: Mapping[str, Any], known: frozenset[str]) -> Exception:
    name = next(name for name in found if name not in known)
    return bad(f"Unknown field {short(name)} in {where}; known: {', '.join(sorted(known))}.")
