"""Bodies that an infer endpoint must refuse with 400, and a part of what it says; for the parser and for a server.

The models are `linear` (x FP32 [-1, 4]), `masked` (ids INT64 [-1, 3], keep BOOL [-1, 3]) and `total` (x FP32 [-1, -1])
of `artifacts`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

GOOD_X: dict[str, Any] = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1, 2.5, -3, 4, 5, 6, 7, 8]}
GOOD_IDS: dict[str, Any] = {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}
GOOD_KEEP: dict[str, Any] = {"name": "keep", "shape": [1, 3], "datatype": "BOOL", "data": [True, False, True]}


@dataclass(frozen=True)
class Bad:
    """A body, the model it is sent to, and a regular expression that the error's text matches."""

    name: str
    body: bytes
    says: str
    model: str = "linear"


def request(*inputs: Any, **fields: Any) -> bytes:
    """An infer request."""
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def x(**changes: Any) -> bytes:
    """A good request for `linear`, but for these fields of its input; None removes one."""
    return request({name: value for name, value in (GOOD_X | changes).items() if value is not None})


def raw_x(data: str, shape: str = "[1, 4]") -> bytes:
    """A request for `linear` whose data is this text, which Python's own JSON would not write."""
    return f'{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "FP32", "data": {data}}}]}}'.encode()


def ids(data: str) -> bytes:
    """A request for `masked` whose whole numbers are this text."""
    keep = json.dumps(GOOD_KEEP)
    return f'{{"inputs": [{{"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": {data}}}, {keep}]}}'.encode()


def nested(levels: int, inner: bytes = b"") -> bytes:
    """Lists within lists."""
    return b"[" * levels + inner + b"]" * levels


def deep(levels: int) -> dict[str, bytes]:
    """A good request with something deep in each of its fields."""
    hole, deeply = '"@"', nested(levels).decode()
    places: dict[str, dict[str, Any]] = {
        "the document": {},
        "an unknown field": {"inputs": [GOOD_X], "extra": "@"},
        "id": {"inputs": [GOOD_X], "id": "@"},
        "parameters": {"inputs": [GOOD_X], "parameters": "@"},
        "a parameter": {"inputs": [GOOD_X], "parameters": {"priority": "@"}},
        "inputs": {"inputs": "@"},
        "an input": {"inputs": ["@"]},
        **{f"an input's {name}": {"inputs": [GOOD_X | {name: "@"}]} for name in (*GOOD_X, "parameters")},
        "a value": {"inputs": [GOOD_X | {"data": ["@"]}]},
        "a value behind others": {"inputs": [GOOD_X | {"data": [1, 2, 3, 4, 5, 6, 7, "@"]}]},
        "a dimension": {"inputs": [GOOD_X | {"shape": ["@", 4]}]},
        "outputs": {"inputs": [GOOD_X], "outputs": "@"},
        "an output": {"inputs": [GOOD_X], "outputs": ["@"]},
        "an output's name": {"inputs": [GOOD_X], "outputs": [{"name": "@"}]},
        "an output's parameters": {"inputs": [GOOD_X], "outputs": [{"name": "y", "parameters": "@"}]},
    }
    bodies = {where: json.dumps(document).replace(hole, deeply).encode() for where, document in places.items()}
    return bodies | {"the document": deeply.encode(), "an object": b'{"a":' * levels + b"1" + b"}" * levels}


NO_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "cut in the middle": x()[:40],
    "cut before the last bracket": x()[:-1],
    "two documents": x() + x(),
    "NUL": b"\x00",
    "bad UTF-8": b'{"id": "\xff\xfe"}',
    "bad UTF-8 in a name": x().replace(b'"x"', b'"\xc3\x28"'),
    "a surrogate by itself": b'{"id": "\\ud800"}',
    "a low surrogate by itself": b'{"id": "\\udc00x"}',
    "a surrogate in UTF-8": b'{"id": "\xed\xa0\x80"}',
    "UTF-16": x().decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + x(),
    "a comment": x()[:-1] + b"/* */}",
    "a comma too many": x()[:-1] + b",}",
    "single quotes": x().replace(b'"', b"'"),
    "a control character in a string": b'{"id": "\x01"}',
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "a form": b"inputs=1&id=2",
    "gzip": b"\x1f\x8b\x08\x00",
    "NaN": raw_x("[NaN, 1, 2, 3]"),
    "Infinity": raw_x("[1, Infinity, 2, 3]"),
    "-Infinity": raw_x("[1, 2, 3, -Infinity]"),
    "1e400": raw_x("[1e400, 1, 2, 3]"),
    "-1e400": raw_x("[-1e400, 1, 2, 3]"),
    "a whole number of 5,000 digits": raw_x(f"[{'9' * 5000}, 1, 2, 3]"),
    "a leading zero": raw_x("[01, 1, 2, 3]"),
    "a hexadecimal": raw_x("[0x10, 1, 2, 3]"),
}

BAD: list[Bad] = [
    *(Bad(name, body, "is no valid JSON") for name, body in NO_JSON.items()),
    *(Bad(f"250,000 levels deep: {where}", body, "is no valid JSON") for where, body in deep(250_000).items()),
    *(Bad(f"120 levels deep: {where}", body, "nested more than 100 levels") for where, body in deep(120).items()),
    # The document.
    *(
        Bad(f"the document is {body.decode()}", body, rf"must be a JSON object; got {kind}")
        for body, kind in (
            (b"[]", "a list"),
            (b"null", "nothing"),
            (b'"x"', "a string"),
            (b"1", "a number"),
            (b"true", "a boolean"),
        )
    ),
    Bad(
        "an unknown field",
        request(GOOD_X, extra=1),
        "Unknown field 'extra' in the request; known: id, inputs, model_name, out",
    ),
    Bad("another model", request(GOOD_X, model_name="b"), "'model_name' is 'b', and the address is another model's"),
    Bad("no model's name", request(GOOD_X, model_name=["linear"]), "'model_name' is "),
    Bad("a field that would be fetched", request(GOOD_X, url="http://169.254.169.254/"), "Unknown field 'url'"),
    Bad("a hostile field", request(GOOD_X, **{"\r\n\x1b[31m": 1}), r"Unknown field '\\r\\n\\x1b\[31m'"),
    *(
        Bad(f"the id is {value!r}", request(GOOD_X, id=value), "'id' must be a string; got")
        for value in (1, 1.5, True, [], {})
    ),
    *(
        Bad(f"the parameters are {value!r}", request(GOOD_X, parameters=value), "parameters of the request must be an")
        for value in ([], 1, "x", {"a": {}}, {"a": [1]})
    ),
    *(
        Bad(f"inputs is {value!r}", json.dumps({"inputs": value}).encode(), rf"'inputs' must be a list .* got {kind}")
        for value, kind in ((None, "nothing"), ({}, "an object"), ("x", "a string"), (3, "a number"))
    ),
    Bad("no inputs at all", b"{}", "'inputs' must be a list of tensors; got nothing"),
    Bad("an empty list of inputs", request(), r"Missing input 'x' \(FP32, shape \[-1, 4\]\)"),
    *(Bad(f"an input is {value!r}", request(value), "must be an object") for value in (None, 1, "x", [], [GOOD_X])),
    # Inputs.
    Bad("an input's unknown field", x(extra=1), "Unknown field 'extra' in an input; known: data, datatype, name, par"),
    Bad("an input without a name", x(name=None), "Unknown input None; known: x"),
    *(Bad(f"the name is {value!r}", x(name=value), "Unknown input") for value in ("", "X", "y", 1, [], {}, "../x")),
    Bad("a name that writes to a terminal", x(name="\x1b]0;x\x07\n"), r"Unknown input '\\x1b\]0;x\\x07\\n'"),
    Bad("a very long name", x(name="n" * 100_000), r"^Unknown input 'n{79}; known: x\.$"),
    Bad("an input given twice", request(GOOD_X, GOOD_X), "Input 'x' is given twice"),
    Bad("an extra input", request(GOOD_X, GOOD_IDS), "Unknown input 'ids'; known: x"),
    Bad("a missing input", request(GOOD_IDS), "Missing input 'keep' \\(BOOL", "masked"),
    Bad("an input's parameters", x(parameters=[1]), "parameters of input 'x' must be an object"),
    Bad("data in both forms", x(parameters={"binary_data_size": 16}), "both 'data' and binary_data_size"),
    Bad("binary data that is not there", x(data=None, parameters={"binary_data_size": 32}), "and 0 bytes are left"),
    Bad("classes", request(GOOD_X, outputs=[{"name": "y", "parameters": {"classification": 2}}]), "'classification'"),
    Bad("shared memory", x(parameters={"shared_memory_region": "r"}), "has the parameter 'shared_memory_region'"),
    # Datatypes.
    *(
        Bad(f"the datatype is {value!r}", x(datatype=value), "Input 'x' must be FP32; got")
        for value in ("FP64", "fp32", "float32", "INT64", "BOOL", "BYTES", "object", "O", "", 1, [], {}, "FP32 ")
    ),
    Bad("no datatype", x(datatype=None), "Input 'x' must be FP32; got None"),
    # Shapes.
    *(
        Bad(f"the shape is {value!r}", x(shape=value), "must have a shape of whole numbers from 1; got")
        for value in (
            "2,4",
            8,
            {},
            True,
            [-2, 4],
            [2, -4],
            [-1, 4],
            [2, 0],
            [0, 4],
            [0],
            [-(10**18), 4],
            [2.0, 4],
            [1.5, 4],
            ["2", 4],
            [True, 4],
            [None, 4],
            [[2], 4],
            [[], 4],
            [{}, 4],
            [2, 4.0],
        )
    ),
    Bad("no shape", x(shape=None), "must have a shape of whole numbers from 1; got None"),
    *(
        Bad(f"the shape is {str(value)[:40]}", x(shape=value), r"Input 'x' must have shape \[-1, 4\]; got")
        for value in ([], [8], [2, 4, 1], [1, 2, 4], [4, 2], [2, 5], [1] * 1000, [2**4, 2**60 + 2], [2, 10**12])
    ),
    Bad("a dimension of 5,000 digits", raw_x("[1]", f"[{'9' * 5000}, 4]"), "is no valid JSON"),
    Bad("a dimension past 64 bits", raw_x("[1]", "[18446744073709551616, 4]"), "must have a shape of whole numbers"),
    Bad("rows that wrap to a small product", x(shape=[2**62, 4], data=[]), "holds 18446744073709551616"),
    Bad("a million million rows", x(shape=[10**12, 4], data=[1]), "has 1 values for shape"),
    Bad("two dimensions that wrap", x(shape=[2**4, 2**60 + 2], data=[1] * 32), "holds 18446744073709551648", "total"),
    Bad("a size of 0 where any is allowed", x(shape=[1, 0], data=[]), "whole numbers from 1; got", "total"),
    Bad("a rank where sizes are free", x(shape=[8]), r"must have shape \[-1, -1\]; got \[8\]", "total"),
    Bad(
        "inputs with different numbers of rows",
        request(GOOD_IDS | {"shape": [2, 3], "data": [1] * 6}, GOOD_KEEP),
        r"must have the same number of rows; got \{'ids': 2, 'keep': 1\}",
        "masked",
    ),
    # Data.
    *(
        Bad(f"the data is {value!r}", x(data=value), "needs its numbers in a list 'data'; got")
        for value in (1, "AAAA", {}, True)
    ),
    Bad("no data", x(data=None), "needs its numbers in a list 'data'; got nothing"),
    *(
        Bad(f"{count} values", x(data=[0] * count), f"has {count} values for shape \\[2, 4\\], which holds 8")
        for count in (0, 1, 7, 9, 16)
    ),
    *(
        Bad(f"the nested data is {value!r}", x(data=value), "Input 'x' (has|is FP32; got)")
        for value in (
            [[1, 2, 3, 4]],
            [[1, 2, 3, 4]] * 3,
            [[1, 2, 3, 4], [5, 6, 7]],
            [[1, 2, 3, 4], 5, 6, 7, 8],
            [[]],
            [[], []],
            [[[1], [2], [3], [4]]] * 2,
            [[1, 2], [3, 4], [5, 6], [7, 8]],
            [[1, 2, 3, 4], {}],
            [[1, 2, 3, 4], "abcd"],
            [[1, 2, 3, 4], None],
            [[[1, 2, 3, 4], [5, 6, 7, 8]]],
        )
    ),
    Bad("too few nested rows", x(data=[[1, 2, 3, 4]]), r"Input 'x' has 1 rows for shape \[2, 4\]"),
    *(
        Bad(f"among the floats: {value!r}", x(data=[1, 2, 3, 4, 5, 6, 7, value]), "is FP32; got .* among its values")
        for value in (True, False, None, "4", "", [8], {}, "NaN")
    ),
    Bad("a nested value is a list", x(data=[[1, 2, 3, 4], [5, 6, 7, [8]]]), "is FP32; got .* among its values"),
    Bad("1e39", x(data=[1e39] * 8), "has a value that is out of range for FP32"),
    Bad("-1e39 among others", x(data=[0] * 7 + [-1e39]), "has a value that is out of range for FP32"),
    *(
        Bad(f"among the whole numbers: {text}", ids(f"[1, 2, {text}]"), "is INT64; got .* among its values", "masked")
        for text in ("1.0", "4.5", "true", "null", '"4"', "[]", "1e3", "18446744073709551616", "-9223372036854775809")
    ),
    Bad("2^63 in INT64", ids("[1, 2, 9223372036854775808]"), "out of range for INT64", "masked"),
    Bad("2^64 - 1 in INT64", ids("[-1, 2, 18446744073709551615]"), "out of range for INT64", "masked"),
    *(
        Bad(
            f"among the truths: {value!r}",
            request(GOOD_IDS, GOOD_KEEP | {"data": [True, False, value]}),
            "is BOOL; got .* among its values",
            "masked",
        )
        for value in (0, 1, 1.0, None, "true", [])
    ),
    # Outputs.
    *(
        Bad(f"outputs is {value!r}", request(GOOD_X, outputs=value), "'outputs' must be a list; got")
        for value in ({}, "y", 1, True)
    ),
    *(
        Bad(f"an output is {value!r}", request(GOOD_X, outputs=[value]), "must be an object with a name and, at most")
        for value in ("y", 1, None, [], {"name": "y", "extra": 1})
    ),
    *(
        Bad(f"the output is called {value!r}", request(GOOD_X, outputs=[{"name": value}]), "Unknown output .*known: y")
        for value in ("Y", "x", "", None, 1, [], {})
    ),
    Bad("an output without a name", request(GOOD_X, outputs=[{}]), "Unknown output None; known: y"),
    Bad("an output's parameters", request(GOOD_X, outputs=[{"name": "y", "parameters": 1}]), "parameters of an output"),
    Bad(
        "an output in shared memory",
        request(GOOD_X, outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        "has the parameter 'shared_memory_region'",
    ),
]
