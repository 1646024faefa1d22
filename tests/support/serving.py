"""Servers for the serving tests, and ways to talk to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import artifacts
import httpx
import numpy as np
import pytest
from doubles import WAIT_S, IdentityBackend

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.serve.batcher import Batcher
from shipline.serve.jobs import Job, Terms
from shipline.serve.model import ServedModel
from shipline.serve.server import BackgroundServer, Serving
from shipline.serve.settings import ServerSettings

GRAPHS = {name: getattr(artifacts, name)() for name in ("linear", "masked", "lookup", "logarithm", "total")}
PICTURE, PICTURES = artifacts.picture()
TABLE, ROWS = artifacts.table()

# For tests of what admins do, but not of who is one.
ANYBODY = ServerSettings(admin_without_key=True)

_TLS = httpx.create_ssl_context()  # the dear part of a client


class _Web(threading.local):
    """A client for each thread: httpcore's pool may close a connection that another thread has just been given.

    No connection is kept, so that tests stay apart.
    """

    def __init__(self) -> None:
        self.client = httpx.Client(verify=_TLS, limits=httpx.Limits(max_keepalive_connections=0), timeout=WAIT_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


web = _Web()

# Nothing that a client is told may say where or how the server runs.
LEAKS = re.compile(
    rf"Traceback|\.py\b|site-packages|/tmp/|/work/|/home/|/usr/|{re.escape(socket.gethostname())}|0x[0-9a-f]{{6}}"
)


def publish_all(repository: Path) -> None:
    """One version of each kind of model."""
    for name, graph in GRAPHS.items():
        artifacts.publish(f"{repository}/{name}", graph)
    artifacts.publish(f"{repository}/picture", PICTURE, raw=PICTURES, version="3")
    artifacts.publish(f"{repository}/table", TABLE, raw=ROWS)


def calls(script: Path, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What a script of client's calls prints, run in a process of its own."""
    command = [sys.executable, "-W", "error", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def tensor(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    """An input of an infer request."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def infer(url: str, model: str = "linear", seed: int = 0, rows: int = 2) -> None:
    """Ask for some rows of a model of floats, and check the numbers."""
    graph = GRAPHS[model]
    inputs = {"x": np.random.default_rng(seed).uniform(0.5, 2, (rows, graph.golden["x"].shape[1])).astype(np.float32)}
    answer = web.post(f"{url}/v2/models/{model}/infer", json={"inputs": [tensor("x", inputs["x"], "FP32")]})
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    expected = graph.function(inputs)["y"]
    np.testing.assert_allclose(np.array(output["data"]).reshape(output["shape"]), expected, rtol=1e-5, atol=1e-5)


def check_works(url: str) -> None:
    """The server is alive and ready, and its numbers are right."""
    assert web.get(f"{url}/v2/health/live").status_code == 200
    assert web.get(f"{url}/v2/health/ready").status_code == 200
    infer(url)


@dataclass(frozen=True)
class Answer:
    """What came back over a raw connection, and whether the server then closed it."""

    status: int
    headers: dict[str, str]
    content: bytes
    closed: bool = False


def check_error(answer: httpx.Response | Answer, status: int, says: str = "") -> None:
    """An error in the one shape that all have, which leaks nothing."""
    code = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    assert code == status, answer.content
    assert answer.headers["content-type"] == "application/json"
    document = httpx.Response(code, content=answer.content).json()
    assert document.keys() == {"error", "id"}
    assert document["error"]
    assert re.search(says, document["error"]), document["error"]
    assert answer.headers["x-request-id"] == document["id"]
    assert not LEAKS.search(answer.content.decode()), answer.content


def connect(url: str) -> socket.socket:
    """A raw connection. Reading gives up before the server's keep-alive ends, so that only a real close is one."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=4)


def receive(connection: socket.socket, method: str = "POST") -> Answer:
    """Read one answer."""
    with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
        response.begin()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def talk(url: str, *parts: bytes) -> Answer:
    """Send bytes as they are, read one answer, and see whether the server closes."""
    with connect(url) as connection:
        for part in parts:
            connection.sendall(part)
        answer = receive(connection)
        try:
            closed = connection.recv(1) == b""
        except ConnectionResetError:
            closed = True
        except TimeoutError:
            closed = False
    return Answer(answer.status, answer.headers, answer.content, closed)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST request as bytes."""
    return (
        "\r\n".join(
            [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
        ).encode()
        + body
    )


def path_only(url: str, method: str, path: str, body: bytes | None = None) -> Answer:
    """Ask for a path that no client would send as it is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@dataclass
class Gated:
    """A server with one model, `gated`, whose every batch waits at a gate; and who has asked."""

    url: str
    backend: IdentityBackend
    arrived: threading.Semaphore
    serving: Serving
    batcher: Batcher
    model: ServedModel
    rows: int = 1

    def body(self, *values: float) -> dict[str, Any]:
        """An infer request of one row for each value."""
        return {"inputs": [tensor("x", np.array(values, np.float32)[:, None], "FP32")]}

    def ask(self, *values: float) -> httpx.Response:
        """Ask for one row for each value; returns when the gate has let the batch through."""
        return web.post(f"{self.url}/v2/models/gated/infer", json=self.body(*values))

    def wait_for(self, requests: int) -> None:
        """Return when so many more requests have reached the batcher."""
        for _ in range(requests):
            assert self.arrived.acquire(timeout=WAIT_S)

    def close_gate(self) -> None:
        """From now on batches wait."""
        self.backend.entered.clear()
        self.backend.gate.clear()


@contextlib.contextmanager
def gated_server(
    root: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int = 8, grpc_port: int | None = None
) -> Iterator[Gated]:
    """A server whose backend is the identity double, in a thread."""
    register_double(monkeypatch)
    publish_identity(root / "gated", max_batch)
    with BackgroundServer(str(root), grpc_port=grpc_port, settings=ANYBODY) as server:
        yield gated(server._serving)


def gated(serving: Serving) -> Gated:
    """Take hold of the double in a server, and count who comes."""
    model = serving._app.repository.get("gated")
    backend, begin, arrived = model._backend, model._batcher.begin, threading.Semaphore(0)
    assert isinstance(backend, IdentityBackend)

    def counted(inputs: artifacts.Arrays, rows: int, terms: Terms | None = None) -> Job:
        arrived.release()
        return begin(inputs, rows, terms)

    model._batcher.begin = counted  # type: ignore[method-assign]
    return Gated(serving.address, backend, arrived, serving, model._batcher, model)


def register_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let artifacts name the identity double as their backend, and run every backend in a thread."""
    monkeypatch.setitem(plugins.BUILT_IN["backend"], "identity", "doubles:IdentityBackend")
    monkeypatch.setattr("shipline.serve.model.INLINE_S", 0.0)


def publish_identity(url: Path, max_batch: int = 8, **fields: Any) -> None:
    """An artifact for the identity double: `x` float32 [-1, 1] -> `y`."""
    graph = artifacts.Graph(
        b"x=y",
        artifacts.linear(1, 1).signature,
        lambda inputs: {"y": inputs["x"]},
        {"x": np.array([[1.0], [2.0]], np.float32)},
    )
    settings = ServingSettings(max_batch_size=max_batch)
    artifacts.publish(str(url), graph, **{"backend": "identity", "serving": settings, **fields})
