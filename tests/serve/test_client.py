"""The client, against a real server and against servers that are none."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import artifacts
import httpx
import numpy as np
import pytest
from helpers import free_port
from serving import GRAPHS, PICTURE, PICTURES, ROWS, TABLE

from shipline.client import Client
from shipline.errors import NotFoundError, ServingError


@pytest.fixture(params=[True, False], ids=["binary", "json"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Client]:
    with Client(url, binary=request.param) as client:
        yield client


def test_ready(client: Client) -> None:
    assert client.ready()


def test_metadata(client: Client) -> None:
    assert client.metadata("picture")["versions"] == ["3"]
    assert client.metadata("picture", version="3")["parameters"]["lineage"]["seed"] == 7


@pytest.mark.parametrize("model", GRAPHS)
@pytest.mark.parametrize("version", [None, "1"])
def test_infer_gives_arrays_of_the_models_dtypes(client: Client, model: str, version: str | None) -> None:
    graph = GRAPHS[model]
    expected = graph.function(graph.golden)
    found = client.infer(model, graph.golden, version=version)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-6)


def test_infer_takes_arrays_in_any_memory_order(client: Client) -> None:
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    expected = GRAPHS["linear"].function({"x": np.ascontiguousarray(x.T[:, :4])})["y"]
    np.testing.assert_allclose(client.infer("linear", {"x": x.T[:, :4]})["y"], expected, rtol=1e-5)


def test_infer_gives_nan_where_json_had_null(client: Client) -> None:
    found = client.infer("logarithm", {"x": np.array([[-1, 1]], np.float32)})
    assert np.isnan(found["y"][0, 0])
    assert found["y"][0, 1] == 0


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": np.array([["a"]])}, r"'x' is str\d*; tensors can be bool, uint8"),
        ({"x": np.array([[{}]])}, "'x' is object; tensors can be bool, uint8"),
        ({"x": [[1.0, 2.0]]}, "'x' is of type list; give it as an array of NumPy's"),
        ({"x": np.zeros((1, 4))}, "answered 400: Input 'x' must be FP32; got 'FP64'"),
        ({"x": np.zeros((1, 5), np.float32)}, r"answered 400: Input 'x' must have shape \[-1, 4\]; got \[1, 5\]"),
        ({"u": np.zeros((1, 4), np.float32)}, "answered 400: Unknown input 'u'; known: x"),
        ({}, "answered 400: Missing input 'x'"),
    ],
)
def test_infer_says_what_is_wrong(client: Client, inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(ServingError, match=says):
        client.infer("linear", inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_infer_sends_what_json_cannot_hold_as_bytes(url: str, value: float) -> None:
    x = {"x": np.array([[value, 1, 2, 3]], np.float32)}
    with np.errstate(invalid="ignore"):
        expected = GRAPHS["linear"].function(x)["y"]
    with Client(url) as client:
        np.testing.assert_array_equal(client.infer("linear", x)["y"], expected)
    says = pytest.raises(ServingError, match="'x' has NaN or infinities, which JSON cannot hold")
    with Client(url, binary=False) as client, says:
        client.infer("linear", x)


def test_predict_takes_bytes_and_files(client: Client, tmp_path: Path) -> None:
    expected = artifacts.answers_of(PICTURE, PICTURES, PICTURES.inputs)[0]
    path = tmp_path / "digit.PNG"
    path.write_bytes(PICTURES.inputs[0])
    (tmp_path / "no-suffix").write_bytes(PICTURES.inputs[0])
    for raw in (PICTURES.inputs[0], path, tmp_path / "no-suffix"):
        found = client.predict("picture", raw)
        assert (found["model_name"], found["model_version"], found["label"]) == ("picture", "3", expected["label"])
        assert found["scores"] == pytest.approx(expected["scores"], rel=1e-4)


def test_predict_takes_rows_and_files_of_rows(client: Client, tmp_path: Path) -> None:
    expected = artifacts.answers_of(TABLE, ROWS, ROWS.inputs)[1]
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS.inputs[1]))
    for raw in (ROWS.inputs[1], path):
        assert client.predict("table", raw, version="1")["label"] == expected["label"]


def test_a_text_is_a_value(client: Client) -> None:
    """However long it is, whatever is in it, and whatever files there are: it may come from anybody."""
    for text in ("hello", "x" * 100_000, "a\0b", __file__):
        with pytest.raises(ServingError, match="answered 400: Expected a JSON object of columns; got str"):
            client.predict("table", text)


def test_a_path_of_no_file_is_said_to_be_one(client: Client, tmp_path: Path) -> None:
    for path in (tmp_path / "seven.png", tmp_path, Path("x" * 5000)):
        with pytest.raises(NotFoundError, match="Cannot read '"):
            client.predict("picture", path)


@pytest.mark.parametrize(
    ("model", "version", "says"),
    [
        ("nobody", None, "answered 404: There is no such model here"),
        ("picture", "1", "answered 404: There is no such version of the model here"),
        ("../v2/health/live?", None, "answered 404"),
        ("picture", "3?x=", "answered 404"),
        ("picture#", None, "answered 404"),
    ],
)
def test_the_servers_message_is_the_errors(client: Client, model: str, version: str | None, says: str) -> None:
    """And a name is one, whatever is in it: it does not lead to another route."""
    for ask in (
        lambda: client.metadata(model, version),
        lambda: client.predict(model, b"x", version=version),
        lambda: client.infer(model, {"x": np.zeros((1, 4), np.float32)}, version=version),
    ):
        with pytest.raises(ServingError, match=says):
            ask()


def test_nobody_listens() -> None:
    port = free_port()
    with Client(f"http://user:hunter2@127.0.0.1:{port}") as client:
        assert not client.ready()
        with pytest.raises(
            ServingError, match=rf"Cannot reach http://\*\*\*@127.0.0.1:{port}: .*Is the server running"
        ) as caught:
            client.metadata("m")
    assert "hunter2" not in str(caught.value)


def test_a_url_without_a_protocol() -> None:
    with Client("127.0.0.1:8000") as client, pytest.raises(ServingError, match="missing an 'http://' or 'https://'"):
        client.metadata("m")


@contextmanager
def answering(status: int, body: bytes, *, cut: bool = False) -> Iterator[str]:
    """The URL of a server that says the same to everything, or promises more than it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + (5 if cut else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"<html>", r"answered 200: no JSON\. Is it a model server\?"),
        (200, b"\xff\xfe", "answered 200: no JSON"),
        (502, b"<html>", "answered 502: Bad Gateway"),
        (500, b"[]", "answered 500: Internal Server Error"),
        (500, b"{}", "answered 500: Internal Server Error"),
        (503, b'{"error": "busy"}', "answered 503: busy"),
    ],
)
def test_a_server_that_is_no_model_server(status: int, body: bytes, says: str) -> None:
    with answering(status, body) as url, Client(url) as client, pytest.raises(ServingError, match=says):
        client.metadata("m")


def test_an_answer_that_is_cut() -> None:
    says = pytest.raises(ServingError, match=r"Cannot reach http://127\.0\.0\.1:\d+: .+ Is the server running")
    with answering(200, b"{}", cut=True) as url, Client(url) as client, says:
        client.metadata("m")


def test_an_error_that_says_nothing_is_called_by_its_name() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with Client("http://slow") as client:
        client._http = httpx.Client(transport=httpx.MockTransport(fail), base_url="http://slow")
        with pytest.raises(ServingError, match=r"Cannot reach http://slow: ReadTimeout\. Is the server running"):
            client.metadata("m")


def test_a_closed_client_is_closed(url: str) -> None:
    client = Client(url)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.metadata("linear")
