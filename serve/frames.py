"""Arrays between two processes, over a socket: a header in JSON, then each array's bytes as they lie in memory.

Nothing is unpickled: a header is data, and an array is numbers, truths, or bytes.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np
import orjson

from shipline.backends.base import Arrays
from shipline.serve.tensors import from_raw, to_raw
from shipline.signature import BYTES, DYNAMIC, TensorSpec

_LENGTH = struct.Struct("<I")
_NUMBERS = frozenset("biufc")

Header = dict[str, Any]
Parts = list[bytes | memoryview]


def packed(header: Header, arrays: Arrays | None = None) -> Parts:
    """Return a frame's parts; arrays that lie in one piece are not copied."""
    parts: Parts = []
    described = []
    for name, array in (arrays or {}).items():
        raw = to_raw(array)
        described.append((name, array.dtype.str, array.shape, len(raw)))
        parts.append(raw)
    text = orjson.dumps({**header, "arrays": described})
    return [_LENGTH.pack(len(text)) + text, *parts]


def send(connection: socket.socket, parts: Parts) -> None:
    """Send a frame.

    Raises:
        OSError: the other side is gone; a TimeoutError, it does not read.
    """
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> tuple[Header, Arrays]:
    """Return the next frame, as soon as there is one.

    Raises:
        EOFError, OSError: the other side is gone.
        ValueError: what it sent is no frame.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    header = orjson.loads(_read(connection, length))
    return header, {name: _array(connection, name, *rest) for name, *rest in header.pop("arrays")}


def _array(connection: socket.socket, name: str, dtype: str, shape: list[int], size: int) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind == np.object_:
        spec = TensorSpec(name=name, dtype=BYTES, shape=(DYNAMIC,))
        return from_raw(memoryview(_read(connection, size)), tuple(shape), spec)
    if kind.kind not in _NUMBERS:
        raise ValueError(f"{name!r} is of type {dtype!r}, which no backend computes with.")
    array = np.empty(shape, kind)
    _fill(connection, array.reshape(-1).view(np.uint8).data)
    return array


def _read(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    _fill(connection, memoryview(data))
    return data


def _fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        try:
            count = connection.recv_into(view)
        except TimeoutError:  # a socket has one time limit for both directions, and ours is that of who sends
            continue
        if not count:
            raise EOFError
        view = view[count:]
