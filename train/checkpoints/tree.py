"""A tree of tensors and plain data as JSON and named tensors: what an optimizer's state is, without a pickle.

JSON has no tensors, bytes, tuples, integer keys, infinities; each is written as an object with one key that begins
with `$`.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from shipline.errors import IntegrityError, TrainingError

# What safetensors writes and reads; it would write some others too, and then fail to read them.
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def encode_tree(tree: Any, tensors: Tensors | None = None) -> tuple[bytes, Tensors]:
    """Return the tree as JSON, and the tensors in it by name: themselves, no copies.

    Args:
        tree: of dicts, lists, tuples, numbers, strings, bytes, None, tensors, arrays.
        tensors: put its tensors here, beside those of other trees.

    Raises:
        TrainingError: a leaf is none of these; the message says where.
    """
    tensors = {} if tensors is None else tensors
    return json.dumps(_encode(tree, tensors, "state"), allow_nan=False).encode(), tensors


def decode_tree(structure: bytes, tensors: Tensors) -> Any:
    """Return the tree that `encode_tree` took; IntegrityError where it is none."""
    try:
        return _decode(json.loads(structure), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"The state of the run cannot be read: {error}.") from error


def read_tensors(data: bytes) -> Tensors:
    """Return the tensors in a safetensors file; IntegrityError where it is none."""
    try:
        return safetensors.torch.load(data)
    except (ValueError, safetensors.SafetensorError) as error:
        raise IntegrityError(f"The state of the run cannot be read: {error}.") from error


def storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """Return the tensor, detached.

    Raises:
        TrainingError: it could not be read back; the message names `path`.
    """
    if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
        raise TrainingError(
            f"{path} is a tensor of {tensor.dtype}, {tensor.layout}, which a checkpoint cannot keep: convert it, or "
            "leave it out."
        )
    return tensor.detach()


def _encode(value: Any, tensors: Tensors, path: str) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, dict):
        return _encode_dict(value, tensors, path)
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    return _encode_leaf(value, tensors, path)


def _encode_leaf(value: Any, tensors: Tensors, path: str) -> Any:
    if isinstance(value, torch.Tensor):
        return {"$tensor": _add(storable(value, path), tensors)}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"$array": [str(value.dtype), list(value.shape), _add(_of_bytes(value.tobytes()), tensors)]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": _add(_of_bytes(value), tensors)}
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return _encode(value.item(), tensors, path)
    if isinstance(value, torch.dtype | torch.device):
        return {f"${type(value).__name__}": str(value).removeprefix("torch.")}
    raise TrainingError(
        f"{path} is a {type(value).__name__}: a checkpoint keeps tensors, arrays, numbers, strings, bytes, None, "
        "lists, tuples and dicts. Turn it into those in state_dict(), or leave it out."
    )


def _add(tensor: torch.Tensor, tensors: Tensors) -> str:
    name = str(len(tensors))
    tensors[name] = tensor
    return name


def _of_bytes(data: bytes | bytearray) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _encode_dict(value: dict[Any, Any], tensors: Tensors, path: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(item, tensors, f"{path}.{key}") for key, item in value.items()}
    pairs = [[_encode(key, tensors, path), _encode(item, tensors, f"{path}[{key!r}]")] for key, item in value.items()]
    return {"$dict": pairs}


def _decode(value: Any, tensors: Tensors) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("$tuple", items)]:
            return tuple(_decode(item, tensors) for item in items)
        case [("$dict", pairs)]:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in pairs}
        case [(kind, content)] if kind in _LEAVES:
            return _LEAVES[kind](content, tensors)
    return {key: _decode(item, tensors) for key, item in value.items()}


def _array(content: Any, tensors: Tensors) -> np.ndarray[Any, Any]:
    dtype, shape, name = content
    return np.frombuffer(tensors[name].numpy().tobytes(), dtype).reshape(shape).copy()


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


_LEAVES: dict[str, Callable[[Any, Tensors], Any]] = {
    "$float": lambda text, _tensors: float(text),
    "$tensor": lambda name, tensors: tensors[name],
    "$bytes": lambda name, tensors: tensors[name].numpy().tobytes(),
    "$array": _array,
    "$dtype": lambda name, _tensors: _dtype(name),
    "$device": lambda name, _tensors: torch.device(name),
}
