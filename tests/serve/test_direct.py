"""The short way of usual requests, and the long way of all others: the same answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_requests import BAD, Bad, x
from helpers import listens, wait_until
from serving import (
    Answer,
    check_error,
    connect,
    gated,
    gated_server,
    post,
    publish_all,
    publish_identity,
    receive,
    register_double,
    talk,
    web,
)

from shipline.serve.http import direct
from shipline.serve.http.cycle import TASK
from shipline.serve.http.endpoints import InferEndpoint
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import Limits, ServerSettings

INFER = "/v2/models/linear/infer"
#: A header that changes nothing but the way that a request takes.
LONG = ("Content-Type: application/json; charset=utf-8",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundServer]:
    repository = tmp_path_factory.mktemp("repository")
    publish_all(repository)
    with BackgroundServer(str(repository)) as server:
        assert asked(server.url, post(INFER, x())).status == 200  # from now on its Host is known
        yield server


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request takes the short way."""
    found: list[bool] = []
    usual = direct.usual

    def watched(*arguments: Any) -> Any:
        result = usual(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr("shipline.serve.http.connection.usual", watched)
    return found


def asked(url: str, data: bytes) -> Answer:
    with connect(url) as connection:
        connection.sendall(data)
        return receive(connection)


def bare(answer: Answer) -> Any:
    """The answer without what differs each time."""
    content = re.sub(rb'"id":"[0-9a-f]{32}"', b'"id":""', answer.content)
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    return answer.status, headers, content


@pytest.mark.parametrize(
    ("headers", "short"),
    [
        ((), True),
        (("Content-Type: application/json",), True),
        (("User-Agent: x", "Accept: */*", "Connection: keep-alive"), True),
        (("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate: a=1"), True),
        (("Content-Type: application/json; charset=utf-8",), False),
        (("Content-Type: text/plain",), False),
        (("X-Request-Id: mine",), True),
        (("Accept-Encoding: gzip",), True),
        (("X-Forwarded-For: 10.0.0.1", "Via: 1.1 proxy", "Origin: http://elsewhere", "Cookie: a=b"), True),
        (("Content-Encoding: gzip",), False),
        (("Authorization: Bearer x",), True),  # there are no keys
        (("Expect: 100-continue",), False),
        (("Connection: close",), False),
        (("Host: two",), False),
        (("Inference-Header-Content-Length: 3", "Content-Type: application/octet-stream"), True),
        (("Inference-Header-Content-Length: 3",), False),
        (("Content-Type: application/octet-stream",), False),
    ],
)
def test_what_is_usual_takes_the_short_way(
    server: BackgroundServer, taken: list[bool], headers: tuple[str, ...], short: bool
) -> None:
    asked(server.url, post(INFER, x(), *headers))
    assert any(taken) == short


@pytest.mark.parametrize("path", [f"{INFER}?x=1", f"{INFER}#x", "/v2/models/%6cinear/infer", "/v2/models/nobody/infer"])
def test_a_path_that_is_not_the_usual_one_takes_the_long_way(
    server: BackgroundServer, taken: list[bool], path: str
) -> None:
    answer = asked(server.url, post(path, x()))
    assert not any(taken)
    assert answer.status == (404 if "nobody" in path else 200 if "#" not in path else answer.status)


@pytest.mark.parametrize("case", [*BAD, Bad("good", x(), "")], ids=lambda case: case.name)
def test_both_ways_give_the_same_answer(server: BackgroundServer, taken: list[bool], case: Bad) -> None:
    path = f"/v2/models/{case.model}/infer"
    short = bare(asked(server.url, post(path, case.body)))
    assert taken == [len(case.body) < direct.OFF_LOOP_BYTES]
    long = bare(asked(server.url, post(path, case.body, *LONG)))
    assert short == long
    assert taken[1:] == [False]


def test_a_model_that_fails_is_500_on_both_ways(server: BackgroundServer) -> None:
    item = {"name": "index", "shape": [1], "datatype": "INT64", "data": [99]}
    body, path = json.dumps({"inputs": [item]}).encode(), "/v2/models/lookup/infer"
    short, long = (bare(asked(server.url, post(path, body, *h))) for h in ((), LONG))
    assert short == long
    assert short[0] == 500


def test_requests_that_follow_each_other_are_answered_in_their_order(server: BackgroundServer) -> None:
    """Usual ones, unusual ones, ones at fault, in pieces of any size."""
    kinds = [
        ((), x(), 200),
        (LONG, x(), 200),
        ((), b"{", 400),
        (("Content-Type: text/plain",), x(), 415),
    ]
    data = b"".join(post(INFER, body, *headers) for headers, body, _ in kinds * 5)
    for size in (1, 7, 100, len(data)):
        with connect(server.url) as connection:
            for start in range(0, len(data), size):
                connection.sendall(data[start : start + size])
            with connection.makefile("rb") as stream:
                assert [status(stream) for _ in kinds * 5] == [expected for *_, expected in kinds * 5]


def status(stream: Any) -> int:
    """Read one answer of several; return its status."""
    first, length = stream.readline(), 0
    while (line := stream.readline().strip()) != b"":
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    stream.read(length)
    return int(first.split()[1])


def test_a_body_in_pieces_is_one(server: BackgroundServer, taken: list[bool]) -> None:
    data = post(INFER, x())
    answer = talk(server.url, *(data[i : i + 20] for i in range(0, len(data), 20)))
    assert answer.status == 200
    assert taken == [True]


@pytest.mark.parametrize(
    ("headers", "behind"),
    [((), 0), ((), 3), (LONG, 0), (LONG, 3)],
    ids=["short way", "short way, others behind it", "long way", "long way, others behind it"],
)
def test_a_client_that_goes_leaves_its_batch_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...], behind: int
) -> None:
    with gated_server(tmp_path, monkeypatch) as gated:
        gated.ask(0.0)
        gated.close_gate()
        path = "/v2/models/gated/infer"
        held = [connect(gated.url) for _ in range(3)]
        for number, connection in enumerate(held):
            body = json.dumps(gated.body(float(number + 1))).encode()
            connection.sendall(post(path, body, *headers))
            if number == 1:
                connection.sendall(post(path, body) * behind)
            if not number:
                assert gated.backend.entered.wait(30)
        batcher = gated.batcher
        wait_until(lambda: batcher._waiting.rows == 2)
        held[1].close()
        wait_until(lambda: batcher._waiting.rows == 1)
        gated.backend.gate.set()
        for number in (0, 2):
            assert json.loads(receive(held[number]).content)["outputs"][0]["data"] == [number + 1]
            held[number].close()
        assert [batch["x"][:, 0].tolist() for batch in gated.backend.batches[-2:]] == [[1], [3]]
        wait_until(lambda: gated.model._users == 0)  # nor does it keep the model
        told = web.get(f"{gated.url}/metrics").text
        assert 'shipline_requests_total{endpoint="infer",model="gated",status="499",version="1"} 1.0' in told


def test_a_server_that_stops_answers_what_it_took_and_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated_server(tmp_path, monkeypatch) as gated:
        gated.ask(0.0)
        gated.close_gate()
        with connect(gated.url) as connection:
            body = json.dumps(gated.body(7.0)).encode()
            connection.sendall(post("/v2/models/gated/infer", body))
            assert gated.backend.entered.wait(30)
            gated.serving.stop()
            wait_until(lambda: not listens(int(gated.url.rpartition(":")[2])))
            gated.backend.gate.set()
            answer = receive(connection)
            assert json.loads(answer.content)["outputs"][0]["data"] == [7]
            assert answer.headers["connection"] == "close"
            assert connection.recv(1) == b""


def test_keys_close_the_short_way(tmp_path: Path, taken: list[bool]) -> None:
    (keys := tmp_path / "keys").write_text("inference a-key-of-enough-letters\n")
    keys.chmod(0o600)
    publish_all(tmp_path / "models")
    with BackgroundServer(str(tmp_path / "models"), settings=ServerSettings(api_keys=str(keys))) as server:
        headers = {"authorization": "Bearer a-key-of-enough-letters"}
        assert web.post(server.url + INFER, content=x(), headers=headers).status_code == 200
        assert asked(server.url, post(INFER, x())).status == 401
        assert not any(taken)


def test_what_has_been_answered_is_cancelled_no_more(server: BackgroundServer) -> None:
    """Its task may still wait for a client that reads slowly; who goes then ends a request that counts as answered."""
    endpoint = InferEndpoint(server._serving._app.repository.get("linear"))
    found: list[bool] = []

    async def receive_() -> dict[str, Any]:
        found.append(TASK in scope)
        return {"type": "http.request", "body": x()}

    async def send(message: Any) -> None:
        found.append(TASK in scope)

    scope: dict[str, Any] = {"method": "POST", "headers": [], "client": None}
    asyncio.run(endpoint(scope, receive_, send))
    assert found == [False, False, False]


@pytest.mark.parametrize("headers", [(), LONG], ids=["short way", "long way"])
@pytest.mark.parametrize("cut", [0, 1, 5000, 99_999, 100_000, 100_001], ids=lambda cut: f"{cut} bytes first")
def test_what_there_is_no_room_for_is_refused_before_its_body_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...], cut: int
) -> None:
    """And what follows the body, on the same connection, is answered as if nothing had been."""
    with gated_server(tmp_path, monkeypatch) as gated:
        gated.ask(0.0)
        path, good = "/v2/models/gated/infer", json.dumps(gated.body(7.0)).encode()
        monkeypatch.setattr(gated.batcher, "_max_queued", 0)
        head, body = post(path, b"", *headers).replace(b"Length: 0", b"Length: 100000"), b"x" * 100_000
        sent = body + post(path, good)
        with connect(gated.url) as connection:
            for _ in range(3):
                connection.sendall(head + sent[:cut])
                if cut > len(body):  # the next head has begun, and no other can stand before it
                    break
                check_error(receive(connection), 503, "Too many requests are waiting")
                connection.sendall(body[cut:])
            if cut > len(body):
                check_error(receive(connection), 503, "Too many requests are waiting")
                connection.sendall(sent[cut : len(body) + 30])
            monkeypatch.undo()
            connection.sendall(sent[len(body) + 30 :] if cut > len(body) else sent[len(body) :])
            answer = receive(connection)
        assert (answer.status, json.loads(answer.content)["outputs"][0]["data"]) == (200, [7])
        told = web.get(f"{gated.url}/metrics").text
        count = 1 if cut > len(body) else 3
        assert f'endpoint="infer",model="gated",status="503",version="1"}} {count}.0' in told
        wait_until(lambda: gated.model._users == 0)


def test_the_rest_of_a_body_that_was_refused_must_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_identity(tmp_path / "gated")
    register_double(monkeypatch)
    settings = ServerSettings(limits=Limits(body_s=0.5))
    with BackgroundServer(str(tmp_path), settings=settings) as server:
        held = gated(server._serving)
        held.ask(0.0)
        monkeypatch.setattr(held.batcher, "_max_queued", 0)
        head = post("/v2/models/gated/infer", b"").replace(b"Length: 0", b"Length: 100000")
        with connect(server.url) as connection:
            connection.sendall(head)
            check_error(receive(connection), 503)
            assert connection.recv(1) == b""  # it is closed
