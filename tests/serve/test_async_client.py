"""The clients as twins: what both do is tested on both; then what only the one for asyncio does."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path

import artifacts
import numpy as np
import pytest
from clients import Twin
from helpers import free_port
from serving import ANYBODY, GRAPHS, PICTURE, PICTURES, ROWS, TABLE
from web_double import GOOD, Asked, Say, double

from shipline.client import AsyncClient, Client
from shipline.errors import NotFoundError, ServingError
from shipline.serve.server import BackgroundServer


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
