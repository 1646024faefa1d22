"""Tensors as clients send them, whatever the protocol: shapes checked, raw bytes (shipline.wire) to arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shipline.backends.base import Arrays
from shipline.serve.errors import bad
from shipline.signature import BYTES, DYNAMIC, TensorSpec
from shipline.wire import elements_from_raw, to_raw as to_raw

_WHOLE = frozenset({int})


def check_shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape; RequestError 400 unless it is one of whole numbers from 1 that the model takes."""
    if type(shape) is list and len(shape) == len(spec.shape):
        for want, got in zip(spec.shape, shape, strict=True):
            if type(got) is not int or got < 1 or want not in (got, DYNAMIC):
                break
        else:
            return tuple(shape)
    if type(shape) is not list or not set(map(type, shape)) <= _WHOLE or any(size < 1 for size in shape):
        raise bad(f"Input {spec.name!r} must have a shape of whole numbers from 1; got {short(shape)}.")
    raise bad(f"Input {spec.name!r} must have shape {list(spec.shape)}; got {short(shape)}.")


def from_raw(data: bytes | memoryview, shape: tuple[int, ...], spec: TensorSpec) -> np.ndarray:
    """Return the array in `data`, without a copy where it lies as processors read it; RequestError 400 if it is none.

    NaN and infinities are taken: only JSON cannot hold them.
    """
    if spec.dtype == BYTES:
        try:
            return elements_from_raw(data, math.prod(shape)).reshape(shape)
        except ValueError as error:
            raise bad(f"Input {spec.name!r} {error}.") from None
    dtype, count = np.dtype(spec.dtype), math.prod(shape)
    if len(data) != count * dtype.itemsize:
        raise bad(
            f"Input {spec.name!r} has {len(data)} bytes for shape {list(shape)} of {spec.datatype}, which takes "
            f"{count * dtype.itemsize}."
        )
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise bad(f"Input {spec.name!r} is BOOL; got a byte other than 0 and 1.")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def common_rows(inputs: Arrays) -> int:
    """Return how many rows the inputs have; RequestError 400 unless all have as many."""
    rows: set[int] = {array.shape[0] for array in inputs.values()}
    if len(rows) > 1:
        sizes = {name: array.shape[0] for name, array in inputs.items()}
        raise bad(f"All inputs must have the same number of rows; got {sizes}.")
    return rows.pop()


def check_length(inputs: Arrays, longest: int) -> None:
    """Raise RequestError 400 unless the rows of all inputs have one length, that the model was proved on."""
    lengths: set[int] = {array.shape[1] for array in inputs.values()}
    if len(lengths) > 1:
        sizes = {name: array.shape[1] for name, array in inputs.items()}
        raise bad(f"The rows of all inputs must have the same length; got {sizes}.")
    if max(lengths) > longest:
        raise bad(f"A row has a length of {longest} at most for this model; got {max(lengths)}.")


def short(value: Any) -> str:
    """Return a value as it may stand in a message: not long, and without control characters."""
    if isinstance(value, dict) or (isinstance(value, list) and len(value) > 16):
        return kind(value)
    return repr(value)[:80]


def kind(value: Any) -> str:
    """Return what sort of JSON value this is."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value), "a number")
