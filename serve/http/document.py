"""JSON documents: strictly parsed, and long lists of numbers without a Python object for each."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import simdjson

from shipline.serve.errors import bad

MAX_DEPTH = 100
# From here on simdjson, which writes numbers straight into a buffer, is faster than orjson and lists.
LARGE_BYTES = 4 << 10

_BUFFERS = {"F": ("d", np.float64), "I": ("i", np.int64), "U": ("u", np.uint64)}


class _Parser(threading.local):
    """A parser for each thread: its memory is used again."""

    def __init__(self) -> None:
        self.parse = simdjson.Parser().parse


_PARSER = _Parser()


def parse_json(body: bytes) -> Any:
    """Return the document; RequestError 400 unless it is JSON (RFC 8259) of at most MAX_DEPTH levels."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"The body is no valid JSON: {error.msg.partition(':')[0]}, at byte {error.pos}.") from None
    if _may_be_deep(body) and _deeper_than(document, MAX_DEPTH):
        raise bad(f"The JSON is nested more than {MAX_DEPTH} levels deep.")
    return document


def parse_tensors(body: bytes) -> Any:
    """Return the document, as `parse_json` does; but flat lists of numbers in 'data' of 'inputs' may be arrays.

    Those are float64, int64 or uint64, by the tensor's own datatype; whatever is odd about a list leaves it one.
    """
    if len(body) < LARGE_BYTES or body[:1] != b"{":
        return parse_json(body)
    try:
        # Nothing of the parser's own leaves the function: the parser serves the next body then.
        document = _with_arrays(_PARSER.parse(body))
    except (ValueError, RuntimeError):  # who finds the fault also says what and where it is
        return parse_json(body)
    # A buffer also takes lists within the list. There are none if nothing opens one more than those that are seen.
    known = _opened(body) == _lists(document) and not _deeper_than(document, MAX_DEPTH)
    return document if known else parse_json(body)


def _with_arrays(document: Any) -> Any:
    if not isinstance(document, simdjson.Object):
        raise ValueError("no tensors")
    found = {name: _whole(document[name]) for name in _names(document) if name != "inputs"}
    inputs = document.get("inputs")
    if not isinstance(inputs, simdjson.Array):
        raise ValueError("no tensors")
    return found | {"inputs": [_input(item) for item in inputs]}


def _input(item: Any) -> Any:
    if not isinstance(item, simdjson.Object):
        return _whole(item)
    names = _names(item)
    found = {name: _whole(item[name]) for name in names if name != "data"}
    if "data" in names:
        found["data"] = _numbers(item["data"], found.get("datatype"))
    return found


def _names(item: Any) -> list[str]:
    """Return the names of an object's values; ValueError where one is there twice, which orjson and this see apart."""
    names = list(item.keys())
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return names


def _numbers(data: Any, datatype: Any) -> Any:
    """Return a flat list of numbers as an array, anything else as it is."""
    if not isinstance(data, simdjson.Array) or not len(data) or isinstance(data[0], simdjson.Array):
        return _whole(data)
    kind, dtype = _BUFFERS.get(datatype[:1] if isinstance(datatype, str) else "", ("", None))
    if not kind:
        return _whole(data)
    try:
        return np.frombuffer(data.as_buffer(of_type=kind), dtype)
    except TypeError:
        return _whole(data)


def _opened(body: bytes) -> int:
    """Return how many lists are opened, or stand so in a text; bytes.count takes ten times as long."""
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord("[")))


def _lists(value: Any) -> int:
    """Return how many lists there are in a document, arrays among them."""
    if isinstance(value, dict):
        return sum(map(_lists, value.values()))
    if isinstance(value, np.ndarray):
        return 1
    return 1 + sum(map(_lists, value)) if isinstance(value, list) else 0


def _whole(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _may_be_deep(body: bytes) -> bool:
    """Fewer brackets than levels allowed is the common case, and cheap to see."""
    return body.count(b"[") + body.count(b"{") > MAX_DEPTH


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
