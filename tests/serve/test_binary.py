"""Tensors as bytes behind the JSON: Triton's binary tensor data extension; and bodies packed by gzip or deflate."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from artifacts import one_tensor as signature
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from serving import GRAPHS, check_error, check_works, web

from shipline.serve.errors import RequestError
from shipline.serve.http.body import MAX_BODY_BYTES
from shipline.serve.http.infer import infer_response, parse_infer
from shipline.serve.tensors import to_raw
from shipline.signature import BYTES, DATATYPES, OIP_DATATYPES, Signature, TensorSpec

LENGTH = "inference-header-content-length"
X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
INFER = "/v2/models/linear/infer"


def described(array: np.ndarray, size: int | None = None, name: str = "x") -> dict[str, Any]:
    """An input whose bytes follow."""
    raw = len(to_raw(array)) if size is None else size
    datatype = DATATYPES[array.dtype.name]
    return {
        "name": name, "shape": list(array.shape), "datatype": datatype, "parameters": {"binary_data_size": raw},
    }  # fmt: skip


def joined(array: np.ndarray, **fields: Any) -> tuple[bytes, int]:
    """A body with the array as bytes, and the length of its JSON."""
    head = json.dumps({"inputs": [described(array)], **fields}).encode()
    return head + bytes(to_raw(array)), len(head)


@pytest.mark.parametrize("dtype", OIP_DATATYPES)
@given(data=st.data())
@settings(max_examples=30, deadline=None, database=None)
def test_an_array_survives_the_way_in_and_out(dtype: str, data: st.DataObject) -> None:
    """Bit for bit, NaN and infinities too, wherever the JSON before it ends."""
    shapes = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)
    array = data.draw(arrays.arrays(dtype, shapes, elements=arrays.from_dtype(np.dtype(dtype))))
    spec = signature(dtype, *array.shape[1:])
    body, length = joined(array, id="i" * data.draw(st.integers(0, 9)), parameters={"binary_data_output": True})
    found = parse_infer(body, spec, length)
    assert found.inputs["x"].flags.aligned
    assert found.inputs["x"].tobytes() == array.tobytes()
    answer, length_out = infer_response("m", "1", found, {"y": found.inputs["x"]}, spec)
    assert length_out is not None
    (output,) = json.loads(answer[:length_out])["outputs"]
    assert output["parameters"]["binary_data_size"] == array.nbytes
    assert answer[length_out:] == array.tobytes()


def test_bytes_survive_the_way_in_and_out() -> None:
    """NUL and what is no UTF-8 too, in the binary form; JSON holds text."""
    spec = signature(BYTES, 2)
    array = np.array([[b"a\0b", "é".encode()], [b"", b"\xff\xfe"]], object)
    body, length = joined(array, outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    found = parse_infer(body, spec, length)
    assert found.inputs["x"].tolist() == array.tolist()
    answer, length_out = infer_response("m", "1", found, {"y": array}, spec)
    assert answer[length_out:] == bytes(to_raw(array))
    text = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "é"]}
    request = parse_infer(json.dumps({"inputs": [text]}).encode(), spec)
    assert request.inputs["x"].tolist() == [[b"a", "é".encode()]]
    document = json.loads(infer_response("m", "1", request, {"y": np.array([["a", b"\xff"]], object)}, spec)[0])
    assert document["outputs"][0]["data"] == ["a", "�"]


def prefixed(*lengths: int) -> bytes:
    return b"".join(struct.pack("<I", length) for length in lengths)


TEXTS = signature(BYTES, 2)
FLOATS = signature("float32", 4)


@pytest.mark.parametrize(
    ("spec", "item", "raw", "says"),
    [
        (FLOATS, described(X), X.tobytes()[:-1], "31 bytes are left"),
        (FLOATS, described(X), X.tobytes() + b"x", "1 bytes behind the JSON belong to no input"),
        (FLOATS, described(X, 28), X.tobytes()[:28], "28 bytes for shape"),
        (FLOATS, described(X, -1), b"", "binary_data_size is -1"),
        (FLOATS, described(X, 1 << 62), X.tobytes(), "binary_data_size is"),
        (FLOATS, described(X) | {"parameters": {"binary_data_size": True}}, b"", "binary_data_size is True"),
        (FLOATS, described(X) | {"parameters": {"binary_data_size": 32.0}}, b"", "binary_data_size is 32.0"),
        (FLOATS, described(X) | {"parameters": {"binary_data_size": "32"}}, b"", "binary_data_size is '32'"),
        (FLOATS, described(X) | {"shape": [1 << 40, 4]}, X.tobytes(), "which takes 17592186044416"),
        (FLOATS, described(X) | {"shape": [1 << 62, 4]}, X.tobytes(), "32 bytes for shape"),
        (FLOATS, described(X) | {"data": []}, X.tobytes(), "both 'data' and binary_data_size"),
        (signature("bool"), described(np.array([True])), b"\x02", "a byte other than 0 and 1"),
        (TEXTS, described(np.array([[b"", b""]], object), 4), prefixed(0), "4 bytes for 2 elements"),
        (TEXTS, described(np.array([[b"", b""]], object), 9), prefixed(0, 0) + b"x", "1 bytes behind its 2 elements"),
        (TEXTS, described(np.array([[b"", b""]], object), 8), prefixed(0, 1), "ends within element 1 of 2"),
        (TEXTS, described(np.array([[b"", b""]], object), 10), prefixed(1, 0) + b"xy", "ends within element 1 of 2"),
        (TEXTS, described(np.array([[b"", b""]], object), 8), prefixed(2**32 - 1, 0), "ends within element 0 of 2"),
        (TEXTS, described(np.array([[b"", b""]], object)) | {"shape": [1 << 60, 2]}, prefixed(0, 0), "8 bytes for"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(spec: Signature, item: dict[str, Any], raw: bytes, says: str) -> None:
    head = json.dumps({"inputs": [item]}).encode()
    with pytest.raises(RequestError, match=says) as caught:
        parse_infer(head + raw, spec, len(head))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "says"), [(["a", 1], "got 1 among"), (["a", None], "got None among"), (["a\0", "b"], "NUL")]
)
def test_texts_that_are_none_are_refused(data: list[Any], says: str) -> None:
    item = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": data}
    with pytest.raises(RequestError, match=says):
        parse_infer(json.dumps({"inputs": [item]}).encode(), TEXTS)


def test_a_lone_surrogate_is_no_text() -> None:
    item = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["\\ud800", ""]}]}'
    with pytest.raises(RequestError, match="no valid JSON"):
        parse_infer(item, TEXTS)


@pytest.mark.parametrize("value", ["yes", 1, 0])
def test_a_form_that_is_neither_is_refused(value: Any) -> None:
    item = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.ravel().tolist()}
    for fields in (
        {"parameters": {"binary_data_output": value}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": value}}]},
    ):
        with pytest.raises(RequestError, match="must be true or false"):
            parse_infer(json.dumps({"inputs": [item], **fields}).encode(), FLOATS)


def test_each_output_comes_in_the_form_that_was_asked_for() -> None:
    spec = Signature(inputs=FLOATS.inputs, outputs=(*FLOATS.outputs, TensorSpec(name="z", dtype="int64", shape=(-1,))))
    outputs = {"y": X, "z": np.array([7, 8])}
    for chosen, default, expected in (
        ([{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}], False, {"y"}),
        ([{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}], True, {"z"}),
        (None, True, {"y", "z"}),
        (None, False, set()),
    ):
        body, length = joined(X, outputs=chosen, parameters={"binary_data_output": default})
        answer, length_out = infer_response("m", "1", parse_infer(body, spec, length), outputs, spec)
        head = json.loads(answer[:length_out])
        assert {output["name"] for output in head["outputs"] if "data" not in output} == expected
        assert answer[len(answer) if length_out is None else length_out :] == b"".join(
            bytes(to_raw(outputs[name])) for name in ("y", "z") if name in expected
        )


# Over HTTP.


def ask(url: str, body: bytes, length: Any, **headers: str) -> httpx.Response:
    answer: httpx.Response = web.post(
        url + INFER, content=body, headers={"content-type": "application/octet-stream", LENGTH: str(length), **headers}
    )
    return answer


def check_right(answer: httpx.Response) -> None:
    """The body is JSON and bytes, and the bytes are right."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    y = np.frombuffer(answer.content[length:], np.float32).reshape(2, 3)
    np.testing.assert_allclose(y, GRAPHS["linear"].function({"x": X})["y"], rtol=1e-5)


BODY, HEAD = joined(X, parameters={"binary_data_output": True})


def test_binary_over_http(url: str) -> None:
    answer = ask(url, BODY, HEAD)
    check_right(answer)
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("length", ["", "-1", "x", "1.5", "0x10", "9" * 400, len(BODY) + 1, 0, HEAD - 1, HEAD + 1])
def test_a_wrong_length_of_the_json_is_400(url: str, length: Any) -> None:
    check_error(ask(url, BODY, length), 400)
    check_works(url)


def test_bytes_without_the_length_of_their_json_are_415(url: str) -> None:
    headers = {"content-type": "application/octet-stream"}
    check_error(web.post(url + INFER, content=BODY, headers=headers), 415, "application/json")


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("x-gzip", gzip.compress)]
)
def test_a_packed_body_is_unpacked(url: str, encoding: str, pack: Any) -> None:
    check_right(ask(url, pack(BODY), HEAD, **{"content-encoding": encoding}))


BOMB = zlib.compressobj(9, zlib.DEFLATED, 31)
PACKED_BOMB = BOMB.compress(bytes(MAX_BODY_BYTES + 1)) + BOMB.flush()


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (PACKED_BOMB, "gzip", 413),
        (gzip.compress(BODY) * 2, "gzip", 415),
        (gzip.compress(BODY) + b"\0", "gzip", 415),
        (gzip.compress(b"") * 100_000, "gzip", 415),
        (gzip.compress(BODY)[:-9], "gzip", 400),
        (gzip.compress(BODY)[:-8] + bytes(8), "gzip", 400),
        (BODY, "gzip", 400),
        (b"", "gzip", 400),
        (gzip.compress(BODY), "deflate", 400),
        (gzip.compress(gzip.compress(BODY)), "gzip", 400),
    ],
    ids=range(10),
)
def test_what_is_packed_wrongly_is_refused(url: str, body: bytes, encoding: str, status: int) -> None:
    check_error(ask(url, body, HEAD, **{"content-encoding": encoding}), status)
    check_works(url)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"], ids=["short way", "long way"])
@pytest.mark.parametrize("accepted", ["gzip", "deflate, gzip;q=0.5", "br, GZIP", "gzip;q=0", "gzip; q=0.0", "*", ""])
def test_a_large_answer_is_packed_for_who_likes_that(url: str, accepted: str, kind: str) -> None:
    item = {"name": "ids", "shape": [8, 3], "datatype": "INT64", "data": [2**62] * 24}
    keep = {"name": "keep", "shape": [8, 3], "datatype": "BOOL", "data": [True] * 24}
    body = {"inputs": [item, keep], "id": "i" * 1000}
    headers = {"accept-encoding": accepted, "content-type": kind, "x-request-id": "mine"}
    answer = web.post(f"{url}/v2/models/masked/infer", json=body, headers=headers)
    assert answer.headers["x-request-id"] == "mine"
    expected = {"gzip": "gzip", "deflate, gzip;q=0.5": "deflate", "br, GZIP": "gzip"}.get(accepted)
    assert answer.headers.get("content-encoding") == expected
    assert answer.json()["outputs"][0]["shape"] == [8, 3]
