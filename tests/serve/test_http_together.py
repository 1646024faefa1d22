"""Many clients at once: who fails, who leaves and who has to wait changes nothing for the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from doubles import POISON, IdentityBackend
from serving import (
    GRAPHS,
    Gated,
    check_error,
    check_works,
    connect,
    gated_server,
    infer,
    post,
    publish_identity,
    register_double,
    tensor,
    web,
)

from shipline.artifact import ServingSettings
from shipline.serve.server import Serving

CLIENTS = 8


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """A server whose batches wait at a gate."""
    with gated_server(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Clients."""
    with ThreadPoolExecutor(80) as pool:
        yield pool


def occupy(server: Gated, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    """Close the gate behind one request, so that what is asked next makes one batch."""
    server.close_gate()
    first = pool.submit(server.ask, 100)
    server.wait_for(1)
    assert server.backend.entered.wait(30)
    return first


def check_row(answer: httpx.Response, *values: float) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == list(values)


@pytest.mark.parametrize("index", range(CLIENTS))
def test_one_bad_row_among_eight_clients_fails_alone(server: Gated, pool: ThreadPoolExecutor, index: int) -> None:
    first = occupy(server, pool)
    asked = [pool.submit(server.ask, POISON if i == index else i) for i in range(CLIENTS)]
    server.wait_for(CLIENTS)
    server.backend.gate.set()
    for number, answer in enumerate(asked):
        if number == index:
            check_error(answer.result(), 500, r"^The model failed on this input\.$")
        else:
            check_row(answer.result(), number)
    check_row(first.result(), 100)
    assert CLIENTS in server.backend.sizes  # they were one batch
    check_row(server.ask(7), 7)


def test_a_row_that_onnxruntime_refuses_fails_alone(url: str, pool: ThreadPoolExecutor) -> None:
    """Whatever batches they make: every answer is that of its own row, many times over."""
    graph = GRAPHS["lookup"]

    def ask(index: int) -> httpx.Response:
        return web.post(f"{url}/v2/models/lookup/infer", json={"inputs": [tensor("index", np.array([index]), "INT64")]})

    indices = [0, 1, 2, 99, 3, 4, -17, 0] * 8
    for index, answer in zip(indices, pool.map(ask, indices), strict=True):
        if index in (99, -17):
            check_error(answer, 500)
        else:
            expected = graph.function({"index": np.array([index])})["row"]
            np.testing.assert_allclose(answer.json()["outputs"][0]["data"], expected[0], rtol=1e-6)
    check_works(url)


@pytest.mark.parametrize("index", range(CLIENTS))
def test_a_client_that_leaves_changes_nothing_for_the_others(
    server: Gated, pool: ThreadPoolExecutor, index: int
) -> None:
    first = occupy(server, pool)
    asked: list[Future[httpx.Response] | None] = []
    for number in range(CLIENTS):
        if number == index:
            with connect(server.url) as connection:
                connection.sendall(post("/v2/models/gated/infer", orjson.dumps(server.body(number))))
                server.wait_for(1)  # its row is queued; then it hangs up
            asked.append(None)
        else:
            asked.append(pool.submit(server.ask, number))
            server.wait_for(1)
    server.backend.gate.set()
    for number, answer in enumerate(asked):
        if answer is not None:
            check_row(answer.result(), number)
    check_row(first.result(), 100)
    check_row(server.ask(7), 7)


def test_a_client_that_leaves_while_its_batch_runs_changes_nothing(server: Gated, pool: ThreadPoolExecutor) -> None:
    server.close_gate()
    with connect(server.url) as connection:
        connection.sendall(post("/v2/models/gated/infer", orjson.dumps(server.body(1))))
        server.wait_for(1)
        assert server.backend.entered.wait(30)
    others = [pool.submit(server.ask, number) for number in range(CLIENTS)]
    server.wait_for(CLIENTS)
    server.backend.gate.set()
    for number, answer in enumerate(others):
        check_row(answer.result(), number)


def test_the_server_answers_others_while_a_batch_runs(server: Gated, pool: ThreadPoolExecutor) -> None:
    first = occupy(server, pool)
    assert web.get(f"{server.url}/v2/health/ready").status_code == 200
    assert web.get(f"{server.url}/metrics").status_code == 200
    check_error(web.post(f"{server.url}/v2/models/gated/infer", content=b"no"), 400)
    assert not first.done()
    server.backend.gate.set()
    check_row(first.result(), 100)


def test_a_full_queue_answers_503_with_retry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 batches may wait; here a batch is one row."""
    with gated_server(tmp_path, monkeypatch, max_batch=1) as server, ThreadPoolExecutor(65) as pool:
        first = occupy(server, pool)
        waiting = [pool.submit(server.ask, number) for number in range(64)]
        server.wait_for(64)
        for _ in range(3):
            answer = server.ask(1000)
            check_error(answer, 503, "Too many requests are waiting")
            assert answer.headers["retry-after"] == "1"
        assert web.get(f"{server.url}/v2/health/ready").status_code == 200
        server.backend.gate.set()
        check_row(first.result(), 100)
        for number, answered in enumerate(waiting):
            check_row(answered.result(), number)
        check_row(server.ask(7), 7)
        assert 1000 not in [batch["x"].item() for batch in server.backend.batches if batch["x"].size == 1]


def test_many_clients_with_rows_of_all_sizes_get_their_own_numbers(url: str, pool: ThreadPoolExecutor) -> None:
    """Good ones among bad ones, models and lengths mixed."""

    def ask(seed: int) -> None:
        kind = seed % 5
        if kind == 0:
            check_error(web.post(f"{url}/v2/models/linear/infer", content=b"{"), 400)
        elif kind == 1:
            values = np.random.default_rng(seed).integers(0, 100, (1 + seed % 3, 1 + seed % 4)).astype(np.float32)
            answer = web.post(f"{url}/v2/models/total/infer", json={"inputs": [tensor("x", values, "FP32")]})
            assert answer.json()["outputs"][0]["data"] == values.sum(axis=1).tolist()
        else:
            infer(url, "linear", seed, rows=1 + seed % 8)

    list(pool.map(ask, range(200)))
    check_works(url)


def test_until_it_has_proved_itself_a_model_is_loading_and_the_server_alive_but_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, gate = IdentityBackend.load, threading.Event()

    def closed(model: bytes, settings: ServingSettings) -> IdentityBackend:
        backend = load(model, settings)
        backend.gate = gate
        return backend

    monkeypatch.setattr(IdentityBackend, "load", closed)
    register_double(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        publish_identity(tmp_path / "gated")
        serving = Serving(str(tmp_path), port=0)
        running = pool.submit(serving.run)
        try:
            assert web.get(f"{serving.address}/v2/health/live").status_code == 200
            answer = web.get(f"{serving.address}/v2/health/ready")
            assert (answer.status_code, answer.json()) == (503, {"ready": False})
            for method, path in (
                ("GET", "/v2/models/gated"),
                ("GET", "/v2/models/gated/ready"),
                ("POST", "/v2/models/gated/infer"),
                ("POST", "/models/gated/predict"),
            ):
                answer = web.request(method, serving.address + path)
                check_error(answer, 503, "is being loaded")
                assert answer.headers["retry-after"] == "1"
            assert not serving.ready
        finally:
            gate.set()
            serving.stop()
            running.result()
