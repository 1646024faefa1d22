"""Tensors in parts, one file for each worker that wrote them, and how the whole is made of these without torch.

The files are safetensors, https://github.com/huggingface/safetensors#format; an index says which part lies where.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from shipline.errors import IntegrityError

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


_INSTEAD = "Do not use this checkpoint: take one that was committed before it, or train again."


class Part(BaseModel):
    """A box of a tensor: where it begins, how long it is in each dimension, and the file it lies in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def key(self, name: str) -> str:
        """Return its name in the file."""
        return part_key(name, self.offsets)


def part_key(name: str, offsets: Sequence[int]) -> str:
    """Return what a tensor's part that begins there is called in its file."""
    return f"{name}@{','.join(map(str, offsets))}"


class Spread(BaseModel):
    """A tensor that lies in parts; dtypes have the names of safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    parts: list[Part] = Field(min_length=1)

    def check(self, name: str, where: str) -> None:
        """Raise IntegrityError, which names the file `where`, unless the parts can be all there is of the tensor."""
        inside = all(
            len(part.offsets) == len(part.sizes) == len(self.shape)
            and all(
                start >= 0 and size >= 0 and start + size <= most
                for start, size, most in zip(part.offsets, part.sizes, self.shape, strict=True)
            )
            for part in self.parts
        )
        starts = [part.offsets for part in self.parts if math.prod(part.sizes)]
        have = sum(math.prod(part.sizes) for part in self.parts)
        alone = len(set(starts)) == len(starts)
        if self.dtype not in _BYTES or not inside or not alone or have != math.prod(self.shape):
            raise IntegrityError(
                f"{where} says of {name!r} ({self.dtype}, {list(self.shape)}) what cannot be: its {len(self.parts)} "
                f"parts have {have} numbers, or lie outside or over each other. {_INSTEAD}"
            )


class ShardIndex(RootModel[dict[str, Spread]]):
    """Every tensor by name."""

    @classmethod
    def parse(cls, data: bytes, where: str) -> ShardIndex:
        """Return the index in `data`; IntegrityError where it is none, or says what cannot be."""
        try:
            index = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise IntegrityError(f"{where} is no index of shards: {place}: {first['msg']}. {_INSTEAD}") from error
        for name, tensor in index.root.items():
            tensor.check(name, where)
        return index


def assemble(index: ShardIndex, read: Callable[[str], bytes], where: str) -> bytes:
    """Return one safetensors file of all tensors, whole.

    Args:
        index: of the parts.
        read: returns a file's bytes.
        where: the files lie, for messages.

    Raises:
        IntegrityError: a file does not hold what the index says.
    """
    entries, end = {}, 0
    for name, tensor in sorted(index.root.items(), key=lambda item: (-_BYTES[item[1].dtype], item[0])):
        size = _BYTES[tensor.dtype] * math.prod(tensor.shape)
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 8)
    whole = np.zeros(8 + len(text) + end, np.uint8)
    whole[: 8 + len(text)] = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    body = whole[8 + len(text) :]
    for file in sorted({part.file for tensor in index.root.values() for part in tensor.parts}):
        found = _File(f"{where}/{file}", read(file))
        for name, tensor in index.root.items():
            start, stop = entries[name]["data_offsets"]
            target = body[start:stop].reshape(*tensor.shape, _BYTES[tensor.dtype])
            for part in tensor.parts:
                if part.file == file:
                    box = tuple(slice(o, o + s) for o, s in zip(part.offsets, part.sizes, strict=True))
                    target[box] = found.part(part.key(name), tensor.dtype, part.sizes)
    return whole.tobytes()


class _File:
    """A safetensors file in memory."""

    def __init__(self, where: str, data: bytes) -> None:
        self._where = where
        try:
            length = int.from_bytes(data[:8], "little")
            self._entries: dict[str, Any] = dict(json.loads(data[8 : 8 + length]))
            self._body = np.frombuffer(data, np.uint8, offset=8 + length)
        except (ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(
                f"{where} has {len(data)} bytes and is no safetensors file: {error}. {_INSTEAD}"
            ) from error

    def part(self, key: str, dtype: str, sizes: tuple[int, ...]) -> np.ndarray:
        """Return a part as bytes, in the shape of the part and one dimension more."""
        found = "nothing of that name"
        try:
            entry = self._entries[key]
            found = f"{entry['dtype']}, {entry['shape']} at {entry['data_offsets']}"
            start, stop = entry["data_offsets"]
            if (entry["dtype"], tuple(entry["shape"])) == (dtype, sizes):
                return self._body[start:stop].reshape(*sizes, _BYTES[dtype])
        except (KeyError, TypeError, ValueError):  # the file does not say, or has fewer bytes than it says
            pass
        raise IntegrityError(
            f"{self._where} does not hold {key!r} as the index says, {dtype}, {list(sizes)}; it has {found}. {_INSTEAD}"
        )
