"""Tensors as clients and servers exchange them: the Open Inference Protocol's binary form.

Row-major, little-endian, without padding; of BYTES, each element behind its length in four bytes.
https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<I")

if sys.byteorder != "little":  # what is sent is, and arrays are taken as they lie in memory
    raise ImportError("Shipline runs on little-endian machines only.")


def to_raw(array: np.ndarray) -> bytes | memoryview:
    """Return the array's bytes, without a copy where it lies in one piece."""
    if array.dtype == np.object_:
        elements = map(_encoded, array.ravel())
        return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def elements_from_raw(data: bytes | memoryview, count: int) -> np.ndarray:
    """Return the elements of a BYTES tensor; their number is known before any memory is taken for them.

    Raises:
        ValueError: these are not so many elements; the text goes on after the tensor's name.
    """
    if len(data) < count * _LENGTH.size:
        raise ValueError(f"has {len(data)} bytes for {count} elements, each behind four of its length")
    found, at = np.empty(count, object), 0
    for number in range(count):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise ValueError(f"ends within element {number} of {count}")
        found[number], at = bytes(data[start:end]), end
    if at != len(data):
        raise ValueError(f"has {len(data) - at} bytes behind its {count} elements")
    return found


def _encoded(element: Any) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
