"""What both clients ask again, how long they wait before they do, and when they give up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
import pytest
from clients import Twin
from web_double import GOOD, Asked, Say, busy, double, in_turn

from shipline.client import retry
from shipline.client.requests import Reply
from shipline.client.retry import Attempts, retry_after
from shipline.errors import ServingError


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
