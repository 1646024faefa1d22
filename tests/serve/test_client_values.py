"""The values that clients send and read, in bytes and in JSON: those that come back are those that were sent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from clients import Twin
from serving import GRAPHS
from web_double import Asked, Say, double, in_turn

from shipline.client import Client, requests
from shipline.client.requests import Reply, Request
from shipline.errors import ServingError
from shipline.serve.errors import RequestError
from shipline.serve.http.infer import infer_response, parse_infer
from shipline.signature import DATATYPES, Signature, TensorSpec


def there_and_back(array: np.ndarray, *, binary: bool) -> np.ndarray:
    """What a client reads when the server gives back what it read."""
    name = array.dtype.newbyteorder("=").name
    spec = Signature(
        inputs=(TensorSpec(name="x", dtype=name, shape=(-1, *array.shape[1:])),),
        outputs=(TensorSpec(name="y", dtype=name, shape=(-1, *array.shape[1:])),),
    )
    request: Request[requests.Arrays] = requests.infer("m", {"x": array}, None, binary=binary)
    body, headers = request.build(30)
    length = headers.get("inference-header-content-length")
    parsed = parse_infer(body, spec, None if length is None else int(length))
    answer, head = infer_response("m", "1", parsed, {"y": parsed.inputs["x"]}, spec)
    extra = {} if head is None else {"inference-header-content-length": str(head)}
    assert (head is not None) == binary
    return request.read(Reply(200, extra, answer))["y"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", [name for name in DATATYPES if name != "object"])
def test_numbers_survive_both_forms(dtype: str, binary: bool) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    for array in (values, values.T, values[::-1], values.astype(values.dtype.newbyteorder(">"))):
        found = there_and_back(array, binary=binary)
        assert found.dtype == values.dtype
        assert found.flags.writeable
        np.testing.assert_array_equal(found, array)


def test_what_json_cannot_hold_survives_the_binary_form() -> None:
    array = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    assert there_and_back(array, binary=True).tobytes() == array.tobytes()
    raw = np.array([[b"a\0\xff", "é"]], object)
    assert there_and_back(raw, binary=True).tolist() == [[b"a\0\xff", "é".encode()]]
    with pytest.raises(ServingError, match="'x' has bytes that are no UTF-8, which JSON cannot hold"):
        there_and_back(raw, binary=False)
    text = np.array([[b"a", "é"]], object)
    assert there_and_back(text, binary=False).tolist() == [[b"a", "é".encode()]]


def test_a_server_that_knows_only_json_refuses_bytes_and_takes_json() -> None:
    """It answers in JSON whatever was asked for, which is read, too."""
    spec = GRAPHS["linear"].signature

    def answer(asked: Asked) -> Say:
        if asked.headers["content-type"] != "application/json":
            return 415, {}, b'{"error": "Send JSON."}'
        try:
            inputs = parse_infer(asked.body, spec).inputs
        except RequestError as error:
            return error.status, {}, json.dumps({"error": error.message}).encode()
        y = GRAPHS["linear"].function(inputs)["y"]
        data = {"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
        return 200, {}, json.dumps({"outputs": [data]}).encode()

    x = GRAPHS["linear"].golden
    with double(answer) as url:
        with Client(url) as client, pytest.raises(ServingError, match="answered 415: Send JSON"):
            client.infer("linear", x)
        with Client(url, binary=False) as client:
            np.testing.assert_allclose(client.infer("linear", x)["y"], GRAPHS["linear"].function(x)["y"], rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"{}", b'{"outputs": 1}', b'{"outputs": [1]}', b'{"outputs": [{"name": "y"}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP99", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}',
    ],
)  # fmt: skip
def test_an_answer_without_tensors(body: bytes) -> None:
    says = pytest.raises(ServingError, match=r"answered 200: no such tensors\. Is it a model server\?")
    with double(in_turn((200, {}, body))) as url, Client(url) as client, says:
        client.infer("m", {"x": np.zeros((1, 1))})


def test_nan_of_other_servers_is_read(ask: Twin) -> None:
    body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [NaN]}]}'
    with double(in_turn((200, {}, body))) as url:
        assert np.isnan(ask(url, "infer", "m", {"x": np.zeros((1, 1))})["y"][0])
