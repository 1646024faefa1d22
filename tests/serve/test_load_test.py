"""The load test, against real servers and against some that are slow, busy, wrong, or none."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import WAIT_S
from helpers import free_port, wait_until
from predicting import GOOD, predicting
from serving import GRAPHS, ROWS, gated_server, web
from web_double import Asked, Say, double

from shipline.client import requests
from shipline.errors import ConfigError, ServingError
from shipline.loadtest import loops, show
from shipline.loadtest.engine import LoadTest
from shipline.loadtest.http import Answer
from shipline.loadtest.loops import Caller, arrivals, open_loop
from shipline.loadtest.results import RIGHT, TIMEOUT, WRONG, Result
from shipline.loadtest.rows import Row, same


def load(url: str, model: str = "m", **settings: Any) -> Result:
    """One closed loop, short unless told otherwise."""
    (result,) = LoadTest(url=url, model=model, **{"seconds": 0.2, "connections": 4, **settings}).run()
    return result


# ---- right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["table", "picture", *GRAPHS])
def test_a_model_answers_rightly_what_the_server_publishes(url: str, model: str) -> None:
    result = load(url, model)
    assert result.counts.keys() == {RIGHT}
    assert result.sent == result.counts[RIGHT] == len(result.latencies) > 4
    assert result.seconds >= 0.2


def test_rows_are_asked_in_turn(url: str, tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS.inputs))
    tensors = tmp_path / "rows.npz"
    np.savez(tensors, x=np.random.default_rng(0).uniform(0.5, 2, (5, 4)).astype(np.float32))
    for model, rows in (("table", lines), ("linear", tensors)):
        result = load(url, model, rows=str(rows), version="1")
        assert result.counts.keys() == {RIGHT}
        assert result.sent > 5

    bodies: set[bytes] = set()

    def answer(asked: Asked) -> Say:
        bodies.add(asked.body)
        return 200, {}, GOOD

    with double(answer) as other:
        load(other, rows=str(lines))
    assert {json.dumps(json.loads(body)) for body in bodies} == {json.dumps(row) for row in ROWS.inputs}


def test_the_key_and_the_credentials_go_with_every_request() -> None:
    seen: set[str | None] = set()

    def answer(asked: Asked) -> Say:
        seen.add(asked.headers.get("authorization"))
        return 200, {}, GOOD

    with double(predicting(answer)) as url:
        load(url, api_key="key-1")
        load(url.replace("//", "//me:hunter2@"))
    assert seen == {"Bearer key-1", "Basic bWU6aHVudGVyMg=="}


# ---- wrong answers, and none -----------------------------------------------------------------------------------------


def test_a_wrong_answer_now_and_then_is_found_out() -> None:
    lock, number, wrong = threading.Lock(), itertools.count(), [0]

    def answer(asked: Asked) -> Say:
        with lock:
            if next(number) % 7 == 3:
                wrong[0] += 1
                return 200, {}, GOOD.replace(b'"7"', b'"1"')
        return 200, {}, GOOD

    with double(predicting(answer)) as url:
        result = load(url)
    assert result.counts == {RIGHT: result.sent - wrong[0], WRONG: wrong[0]}
    assert wrong[0] > 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"7", GOOD[:-1] + b', "more": 1}', b"\xff"])
def test_what_is_no_answer_is_wrong(body: bytes) -> None:
    answers = itertools.chain([GOOD], itertools.repeat(body))
    with double(predicting(lambda asked: (200, {}, next(answers)))) as url:
        result = load(url, connections=1)
    assert result.counts.keys() == {WRONG}


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        ({"a": 1.0}, {"a": 1.0005}, True),
        ({"a": 1.0}, {"a": 1.01}, False),
        ({"a": 1.0}, {}, False),
        ({"a": 1.0, "model_version": "1"}, {"a": 1, "model_version": "2"}, True),
        ({"a": True}, {"a": 1.0005}, False),
        ({"a": None}, {"a": None}, True),
        ([1, [2, "x"]], [1, [2, "x"]], True),
        ([1, [2, "x"]], [1, [2, "y"]], False),
        ([1], [1, 2], False),
        ({"y": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32) + 1e-5}, True),
        ({"y": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32) + 1}, False),
        ({"y": np.ones(2, np.float32)}, {"y": np.ones(2)}, False),
        ({"y": np.ones(2, np.float32)}, {"y": np.ones((2, 1), np.float32)}, False),
        ({"y": np.array([np.nan])}, {"y": np.array([np.nan])}, True),
        ({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, False),
        ({"y": np.array([b"a"], object)}, {"y": np.array([b"b"], object)}, False),
    ],
)
def test_what_is_the_same(expected: Any, found: Any, equal: bool) -> None:
    assert same(expected, found, 1e-3) == equal


def test_an_overloaded_server_shows_503s_and_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue of 64 is full while the gate is closed; who has a place in it is answered when it opens."""
    with gated_server(tmp_path, monkeypatch, max_batch=1) as server, ThreadPoolExecutor(1) as pool:
        server.close_gate()
        running = pool.submit(load, server.url, "gated", connections=100, seconds=0.5)
        assert server.backend.entered.wait(WAIT_S)  # that which is asked alone
        server.backend.gate.set()
        server.wait_for(2)
        server.close_gate()
        wait_until(lambda: 'status="503"' in web.get(f"{server.url}/metrics").text)
        server.backend.gate.set()
        result = running.result()
    assert result.counts["503"] > 0
    assert result.counts[RIGHT] > 0
    assert result.counts.keys() == {RIGHT, "503"}
    assert len(result.latencies) == result.counts[RIGHT]


def test_a_server_that_falls_silent_or_breaks() -> None:
    over, silent, broken = threading.Event(), itertools.count(), itertools.count()

    def falls_silent(asked: Asked) -> Say:
        if next(silent):
            over.wait(WAIT_S)
        return 200, {}, GOOD

    with double(predicting(falls_silent)) as url:
        result = load(url, timeout=0.3)
        over.set()
    assert result.counts == {TIMEOUT: 4}
    assert min(result.latencies) >= 0.3
    cut = {"Content-Length": "99", "Connection": "close"}
    with double(predicting(lambda asked: (200, cut if next(broken) else {}, GOOD))) as url:
        assert load(url).counts.keys() == {"broken"}


def test_a_server_that_is_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"Cannot reach http://\*\*\*@127\.0\.0\.1:\d+: .*Is the server running"):
        load(f"http://me:hunter2@127.0.0.1:{free_port()}")
    with pytest.raises(ServingError, match=r"publishes no example for 'nobody'. Check the name, or give rows"):
        load(url, "nobody")
    with (
        double(lambda asked: (404, {}, b"<html>")) as other,
        pytest.raises(ServingError, match=r"no example\. Give rows"),
    ):
        load(other)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"no": 1}\n')
    with pytest.raises(ServingError, match="answered 400: Unknown column 'no'"):
        load(url, "table", rows=str(rows))


def test_rows_that_cannot_be_read(url: str, tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_bytes(b"no")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    np.savez(tmp_path / "uneven.npz", x=np.zeros((2, 4)), y=np.zeros((3, 4)))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 4)))
    np.savez(tmp_path / "scalar.npz", x=np.float32(1))
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a"\n')
    for name, says in (
        ("no.npz", "Cannot read the rows"),
        ("none.npz", "Cannot read the rows"),
        ("pickled.npz", "Object arrays cannot be loaded"),
        ("uneven.npz", "must have the same number of rows"),
        ("empty.npz", "must have the same number of rows, at least one"),
        ("scalar.npz", "must have the same number of rows"),
        ("bad.jsonl", "Line 2 of .* is no JSON value"),
    ):
        with pytest.raises(ConfigError, match=says):
            load(url, "linear", rows=str(tmp_path / name))


# ---- open loop -------------------------------------------------------------------------------------------------------


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = np.array(arrivals(1000, 20))
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert times[-1] < 20
    assert abs(len(times) - 20_000) < 5 * np.sqrt(20_000)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: both are 1/rate
    assert arrivals(1000, 20) == times.tolist()


def test_an_open_loop_keeps_its_rates(url: str) -> None:
    heard: list[str] = []
    results = LoadTest(url=url, model="table", rates=(50, 200), seconds=0.5).run(lambda r: heard.append(r.name))
    assert heard == ["50/s", "200/s"]
    for rate, result in zip((50, 200), results, strict=True):
        assert result.sent == len(arrivals(rate, 0.5)) == result.counts[RIGHT]
        assert len(result.late) == result.sent


def test_while_a_server_stalls_time_goes_on_for_all_who_would_have_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over one connection a single answer is slow; measured from when it was due, so are those behind it."""
    sixty_are_due, gone = asyncio.Event(), asyncio.Event()

    class Late(array):  # type: ignore[type-arg]
        def append(self, seconds: float) -> None:
            super().append(seconds)
            if len(self) == 60:
                sixty_are_due.set()

    result = Result("", late=Late("d"))
    monkeypatch.setattr(loops, "Result", lambda name: result)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in itertools.count():
            if not await reader.readline():
                break
            await reader.readuntil(b"\r\n")
            if number == 1:
                await sixty_are_due.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        gone.set()

    async def run() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            address = loops.httpx.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            request = requests.predict("m", 1, None)
            row = Row(b"GET / HTTP/1.1\r\n\r\n", request, Answer(200, b"", b"{}"), "", 0)
            caller = Caller(address, connections=1, timeout=WAIT_S)
            await open_loop(caller, [row], rate=500, seconds=0.4)
            caller.close()
            await gone.wait()

    asyncio.run(run())
    assert result.counts == {RIGHT: len(arrivals(500, 0.4))}
    latencies = sorted(result.latencies)
    assert sum(latency > latencies[-1] / 10 for latency in latencies) >= 40


# ---- results ---------------------------------------------------------------------------------------------------------


def result_of(*milliseconds: float, **counts: int) -> Result:
    result = Result("7/s", seconds=2.0)
    result.latencies.extend(value / 1e3 for value in milliseconds)
    result.counts.update(counts)
    return result


def test_a_quantile_is_a_latency_that_there_was() -> None:
    result = result_of(*range(1, 1001), **{RIGHT: 990, WRONG: 5, "503": 4, TIMEOUT: 1})
    found = {name: round(value or 0, 6) for name, value in result.percentiles().items()}
    assert found == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert (result.sent, result.throughput, result.goodput) == (1000, 499.5, 495)
    assert set(result_of().percentiles().values()) == {None}


def test_every_latency_is_in_the_histogram() -> None:
    shown = show.histogram(result_of(*[1.0] * 5, *[10.0] * 7, 1000.0))
    counts = [int(line.rsplit(" ", 1)[1]) for line in shown.splitlines()[1:]]
    assert sum(counts) == 13
    assert {5, 7, 1} <= set(counts)
    assert show.histogram(result_of()) == ""
    assert "3" in show.histogram(result_of(2.0, 2.0, 2.0))
