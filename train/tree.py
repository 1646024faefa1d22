"""A tree of tensors and plain data as safetensors and JSON: what an optimizer's state is, without a pickle.

JSON has no tensors, tuples, integer keys, infinities; each is written as an object with one key that begins with `$`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import safetensors.torch
import torch

from shipline.errors import IntegrityError, TrainingError

# What safetensors writes and reads; it would write some others too, and then fail to read them.
_DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16,
    torch.uint8, torch.bool,
})  # fmt: skip


def dump_tree(tree: Any) -> tuple[bytes, bytes]:
    """Return the tree as (JSON, safetensors).

    Raises:
        TrainingError: a leaf is neither a tensor nor plain data; the message says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(tree, tensors, "state")
    return json.dumps(structure, allow_nan=False).encode(), safetensors.torch.save(tensors)


def load_tree(structure: bytes, tensors: bytes) -> Any:
    """Return the tree that `dump_tree` wrote; IntegrityError where it is none."""
    try:
        return _decode(json.loads(structure), safetensors.torch.load(tensors))
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise IntegrityError(f"The state of the run cannot be read: {error}.") from error


def storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """Return a copy as safetensors can hold it: it refuses tensors that share memory.

    Raises:
        TrainingError: it could not be read back; the message names `path`.
    """
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
        raise TrainingError(
            f"{path} is a tensor of {tensor.dtype}, {tensor.layout}, which a checkpoint cannot keep: convert it, or "
            "leave it out."
        )
    return tensor.detach().cpu().contiguous().clone()


def _encode(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = storable(value, path)
        return {"$tensor": str(len(tensors) - 1)}
    if isinstance(value, list):
        return [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return _encode_dict(value, tensors, path)
    raise TrainingError(
        f"{path} is a {type(value).__name__}: a checkpoint keeps tensors, numbers, strings, None, lists, tuples and "
        "dicts. Turn it into those in state_dict(), or leave it out."
    )


def _encode_dict(value: dict[Any, Any], tensors: dict[str, torch.Tensor], path: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(item, tensors, f"{path}.{key}") for key, item in value.items()}
    pairs = [[_encode(key, tensors, path), _encode(item, tensors, f"{path}[{key!r}]")] for key, item in value.items()]
    return {"$dict": pairs}


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("$float", text)]:
            return float(text)
        case [("$tensor", name)]:
            return tensors[name]
        case [("$tuple", items)]:
            return tuple(_decode(item, tensors) for item in items)
        case [("$dict", pairs)]:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in pairs}
    return {key: _decode(item, tensors) for key, item in value.items()}
