"""The clients as twins: what both do is tested on both; then what only the one for asyncio does."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import artifacts
import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from helpers import free_port
from serving import ANYBODY, GRAPHS, PICTURE, PICTURES, ROWS, TABLE
from web_double import Asked, Say, double

from shipline.client import AsyncClient, Client, requests, retry
from shipline.client.requests import Reply, Request
from shipline.client.retry import Attempts, retry_after
from shipline.errors import ConfigError, NotFoundError, ServingError
from shipline.serve.errors import RequestError
from shipline.serve.http.infer import infer_response, parse_infer
from shipline.serve.server import BackgroundServer
from shipline.signature import DATATYPES, Signature, TensorSpec

KEY = "key-5ec2e7"


class Twin:
    """Either client, called as the one without asyncio."""

    def __init__(self, client: type[Client | AsyncClient]) -> None:
        self.client = client

    def __call__(
        self, url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **named: Any
    ) -> Any:
        """Make a client with these settings, and call its method."""
        if self.client is Client:
            with Client(url, **(client or {})) as one:
                return getattr(one, method)(*arguments, **named)

        async def ask() -> Any:
            async with AsyncClient(url, **(client or {})) as other:
                return await getattr(other, method)(*arguments, **named)

        return asyncio.run(ask())


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest) -> Twin:
    """Either client."""
    return Twin(request.param)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    seen: list[float] = []

    async def note(seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr("shipline.client.synchronous.sleep", seen.append)
    monkeypatch.setattr("shipline.client.asynchronous.sleep", note)
    return seen


def in_turn(*answers: Say) -> Callable[[Asked], Say]:
    """One answer after the other; the last for ever."""
    left = iter(itertools.chain(answers, itertools.repeat(answers[-1])))
    return lambda asked: next(left)


GOOD: Say = (200, {}, b'{"label": "7"}')


def busy(status: int = 503, **headers: str) -> Say:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"error": "busy"}'


def test_the_twins_have_the_same_methods_and_settings() -> None:
    def public(kind: type) -> dict[str, str]:
        named = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(f)) for name, f in named if name == "__init__" or name[0] != "_"}

    assert public(Client) == public(AsyncClient)


def test_they_answer_alike(ask: Twin, url: str, tmp_path: Path) -> None:
    assert ask(url, "ready")
    assert ask(url, "metadata", "picture")["versions"] == ["3"]
    (tmp_path / "digit.png").write_bytes(PICTURES.inputs[0])
    expected = artifacts.answers_of(PICTURE, PICTURES, PICTURES.inputs)[0]["label"]
    for raw in (PICTURES.inputs[0], tmp_path / "digit.png"):
        assert ask(url, "predict", "picture", raw, version="3")["label"] == expected
    with pytest.raises(NotFoundError, match="Cannot read"):
        ask(url, "predict", "picture", tmp_path / "none.png")
    graph = GRAPHS["masked"]
    for binary in (True, False):
        found = ask(url, "infer", "masked", graph.golden, client={"binary": binary})
        for name, array in graph.function(graph.golden).items():
            assert found[name].dtype == array.dtype
            np.testing.assert_allclose(found[name], array)


def test_models_are_loaded_and_unloaded(ask: Twin, tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    with BackgroundServer(str(tmp_path), settings=ANYBODY) as server:
        (state,) = ask(server.url, "models")
        assert (state["name"], state["version"], state["state"]) == ("linear", "1", "READY")
        assert ask(server.url, "unload", "linear") is None
        with pytest.raises(ServingError, match="answered 40"):
            ask(server.url, "infer", "linear", GRAPHS["linear"].golden)
        assert ask(server.url, "load", "linear") is None
        assert ask(server.url, "infer", "linear", GRAPHS["linear"].golden).keys() == {"y"}
        with pytest.raises(ServingError, match="answered 404"):
            ask(server.url, "load", "nobody")


def test_nobody_listens(ask: Twin, waits: list[float]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert not ask(url, "ready")
    assert waits == []
    with pytest.raises(ServingError, match=r"Cannot reach .* Is the server running"):
        ask(url, "metadata", "m")
    assert len(waits) == 3


# ---- many ------------------------------------------------------------------------------------------------------------


def test_many_are_answered_in_their_order(ask: Twin, url: str) -> None:
    rows = list(ROWS.inputs) * 20
    expected = [answer["label"] for answer in artifacts.answers_of(TABLE, ROWS, rows)]
    assert [answer["label"] for answer in ask(url, "predict_many", "table", rows)] == expected
    assert ask(url, "predict_many", "table", []) == []


def test_one_of_many_fails(ask: Twin, url: str) -> None:
    rows = [ROWS.inputs[0], {"no": 1}, ROWS.inputs[1], float("nan")]
    first, second, third, fourth = ask(url, "predict_many", "table", rows, return_errors=True)
    assert (first["model_name"], third["model_name"]) == ("table", "table")
    assert "Unknown column 'no'" in str(second)
    assert "no JSON value" in str(fourth)
    with pytest.raises(ServingError, match="Unknown column 'no'"):
        ask(url, "predict_many", "table", rows[:3])


def test_as_many_are_asked_at_once_as_there_are_connections(ask: Twin) -> None:
    """All four are there at once, or the barrier breaks; a fifth never is."""
    barrier, lock, now, most = threading.Barrier(4), threading.Lock(), [0], [0]

    def answer(asked: Asked) -> Say:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        barrier.wait(30)
        with lock:
            now[0] -= 1
        return 200, {}, asked.body

    with double(answer) as url:
        answers = ask(url, "predict_many", "m", [{"n": n} for n in range(12)], client={"connections": 4})
    assert answers == [{"n": n} for n in range(12)]
    assert most[0] == 4


# ---- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_asked_again(ask: Twin, waits: list[float], status: int) -> None:
    with double(in_turn(busy(status), busy(status), GOOD)) as url:
        assert ask(url, "predict", "m", 7) == {"label": "7"}
    assert len(waits) == 2
    assert 0 <= waits[0] <= 0.1
    assert 0 <= waits[1] <= 0.2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 500])
def test_what_would_not_pass_is_not(ask: Twin, waits: list[float], status: int) -> None:
    with double(in_turn(busy(status), GOOD)) as url, pytest.raises(ServingError, match=f"answered {status}: busy"):
        ask(url, "predict", "m", 7)
    assert waits == []


def test_it_ends_with_the_last_error(ask: Twin, waits: list[float]) -> None:
    for retries in (0, 2):
        waits.clear()
        with double(in_turn(busy())) as url, pytest.raises(ServingError, match="answered 503: busy"):
            ask(url, "predict", "m", 7, client={"retries": retries})
        assert len(waits) == retries


def test_the_server_says_how_long_to_wait(ask: Twin, waits: list[float]) -> None:
    with double(in_turn(busy(retry_after="2"), GOOD)) as url:
        assert ask(url, "predict", "m", 7) == {"label": "7"}
    assert 2 <= waits[0] <= 2.1


def test_nobody_waits_for_what_would_come_too_late(ask: Twin, waits: list[float]) -> None:
    with double(in_turn(busy(retry_after="60"), GOOD)) as url, pytest.raises(ServingError, match="503: busy"):
        ask(url, "predict", "m", 7)
    assert waits == []


def test_a_connection_that_breaks_is_made_again(ask: Twin, waits: list[float]) -> None:
    with double(in_turn((200, {"Content-Length": "99", "Connection": "close"}, b"{"), GOOD)) as url:
        assert ask(url, "predict", "m", 7) == {"label": "7"}
    assert len(waits) == 1


@pytest.mark.parametrize("kind", ["silent", "slow"])
def test_the_deadline_is_that_of_the_whole_call(ask: Twin, kind: str) -> None:
    """Also where there is always something new to read."""
    over = threading.Event()

    def answer(asked: Asked) -> Say:
        over.wait(30)
        return GOOD

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not over.is_set():
            writer.write(b" ")
            await asyncio.sleep(0.01)
        writer.close()

    server = double(answer) if kind == "silent" else in_a_loop(drip)
    with server as url, contextlib.ExitStack() as at_last:
        at_last.callback(over.set)
        with pytest.raises(ServingError, match=r"gave no answer within 0\.3 s\."):
            ask(url, "predict", "m", 7, client={"timeout": 0.3})


class in_a_loop:  # noqa: N801 -- used as a function
    """The URL of a server of asyncio in a thread; it ends when its connections have."""

    def __init__(self, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._handler, self._url, self._ready = handler, "", threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(30)
        return self._url

    def __exit__(self, *of: object) -> None:
        self._thread.join()

    async def _serve(self) -> None:
        done = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._handler(reader, writer)
            done.set()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            self._url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._ready.set()
            await done.wait()


def test_the_server_is_told_what_is_left(ask: Twin, waits: list[float]) -> None:
    told = []

    def answer(asked: Asked) -> Say:
        head = asked.body[: int(asked.headers["inference-header-content-length"])]
        told.append(json.loads(head)["parameters"]["timeout"])
        return busy() if len(told) == 1 else (200, {}, b'{"outputs": []}')

    with double(answer) as url:
        assert ask(url, "infer", "m", {"x": np.zeros((1, 1))}, client={"timeout": 20}) == {}
    assert 20e6 >= told[0] >= told[1] > 1e6


# The policy alone, by a clock that stands.


def attempts(draw: float = 1.0, seconds: float = 100, repeats: int = 9) -> Attempts:
    return Attempts(repeats, seconds, clock=lambda: 50.0, draw=lambda: draw)


def test_waits_grow_to_a_limit_and_are_drawn_from_all_below() -> None:
    refused = httpx.ConnectError("refused")
    most, least = attempts(1), attempts(0)
    assert [most.wait(refused) for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert [least.wait(refused) for _ in range(9)] == [0] * 9
    assert most.wait(refused) is None


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        (httpx.ConnectError(""), True), (httpx.ReadError(""), True), (httpx.WriteError(""), True),
        (httpx.RemoteProtocolError(""), True), (httpx.ConnectTimeout(""), True),
        (httpx.ReadTimeout(""), False), (httpx.UnsupportedProtocol(""), False), (httpx.LocalProtocolError(""), False),
        (Reply(200, {}, b""), False), (Reply(500, {}, b""), False), (Reply(503, {}, b""), True),
    ],
)  # fmt: skip
def test_which_outcomes_may_pass(outcome: retry.Outcome, again: bool) -> None:
    assert (attempts().wait(outcome) is not None) == again


def test_a_wait_that_reaches_the_deadline_is_none() -> None:
    assert attempts(1, seconds=0.09).wait(httpx.ConnectError("")) is None
    assert attempts(1, seconds=0.11).wait(httpx.ConnectError("")) == 0.1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("3", 3, 3), (" 0 ", 0, 0), ("", 0, 0), ("-1", 0, 0), ("soon", 0, 0), ("²", 0, 0), ("1.5", 0, 0),
        ("9" * 99, 1e8, 1e9), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
    ],
)  # fmt: skip
def test_retry_after(text: str, least: float, most: float) -> None:
    assert least <= retry_after(text) <= most


# ---- what is secret, what is trusted ---------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown(ask: Twin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = []

    def answer(asked: Asked) -> Say:
        keys.append(asked.headers.get("authorization"))
        return 401, {}, b'{"error": "no"}'

    with double(answer) as url:
        with pytest.raises(ServingError) as caught:
            ask(url, "predict", "m", 7, client={"api_key": KEY})
        with pytest.raises(ServingError) as with_both:
            ask(url.replace("//", "//me:hunter2@"), "predict", "m", 7, client={"api_key": KEY})
        with pytest.raises(ServingError):
            ask(url.replace("//", "//me:hunter2@"), "predict", "m", 7)
    assert keys == [f"Bearer {KEY}", f"Bearer {KEY}", "Basic bWU6aHVudGVyMg=="]
    shown = [str(caught.value), str(with_both.value), caplog.text, repr(vars(Client(url, api_key=KEY)))]
    shown.append(repr(ask.client("http://me:hunter2@h", api_key=KEY)))
    for text in shown:
        assert KEY not in text
        assert "hunter2" not in text
    assert "POST" in caplog.text


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f"{KEY} x", f"{KEY}é"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key is empty, or has characters") as caught:
        Client("http://h", api_key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout": 0}, "timeout is 0; it must be more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1; it must be at least 0"),
        ({"connections": 0}, "connections is 0; it must be at least 1"),
        ({"verify": "none.pem"}, "verify is 'none.pem', which is no file of certificates"),
    ],
)
def test_a_setting_that_is_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Client("http://h", **settings)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that nobody has signed, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_certificates_are_checked(ask: Twin, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with double(in_turn(GOOD), context) as url:
        with pytest.raises(ServingError, match=r"Cannot reach https://.*certificate"):
            ask(url, "predict", "m", 7, client={"retries": 0})
        for verify in (str(certificate), certificate, False, ssl.create_default_context(cafile=certificate)):
            assert ask(url, "predict", "m", 7, client={"verify": verify}) == {"label": "7"}


# ---- forms -----------------------------------------------------------------------------------------------------------


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


# ---- asyncio ---------------------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_ends() -> None:
    arrived, over = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Say:
        arrived.set()
        over.wait(30)
        return GOOD

    async def cancelled(url: str) -> None:
        async with AsyncClient(url) as client:
            call = asyncio.ensure_future(client.predict_many("m", range(8)))
            await asyncio.to_thread(arrived.wait, 30)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert asyncio.all_tasks() == {asyncio.current_task()}
            over.set()
            assert await client.predict("m", 7) == {"label": "7"}

    with double(answer) as url:
        asyncio.run(cancelled(url))
