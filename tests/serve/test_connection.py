"""Hostile connections: requests that never arrive, answers that nobody reads, memory that stays."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_requests import x
from connections import GET, INFER, POST, SHORT, connections, ended, server_with
from helpers import wait_until
from serving import Answer, check_error, check_works, connect, post, receive, talk

from shipline.errors import ConfigError
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import Limits


@pytest.fixture(scope="module")
def server(repository: str) -> Iterator[BackgroundServer]:
    """One with short deadlines."""
    with server_with(repository, SHORT) as server:
        yield server


@pytest.fixture
def url(server: BackgroundServer) -> str:
    """Its URL."""
    return server.url


ARRIVES_IN_PART = {
    "a method": b"PO",
    "a line": b"POST /v2",
    "a head": POST + b"Content-Length: 100\r\n",
    "a header": POST + b"X-A: b",
    "no body": POST + b"Content-Length: 100\r\n\r\n",
    "a body": POST + b"Content-Length: 100\r\n\r\n{",
    "a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "the last chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
}


@pytest.mark.parametrize("part", ARRIVES_IN_PART)
def test_a_request_that_does_not_arrive_is_408(server: BackgroundServer, part: str) -> None:
    answer = talk(server.url, ARRIVES_IN_PART[part])
    check_error(answer, 408, "did not arrive in time")
    assert answer.closed
    check_works(server.url)
    wait_until(lambda: not server._serving._server.server_state.tasks)  # nobody waits for its body any more


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (GET + b"X: ", b"v"),
        (GET, b"X: v\r\n"),
        (POST + b"Content-Length: 1000000\r\n\r\n", b" "),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["header", "headers", "body", "chunks"],
)
def test_a_request_that_arrives_drop_by_drop_is_408(url: str, begin: bytes, drop: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(begin)
        for _ in range(2000):
            connection.sendall(drop)
            if select.select([connection], [], [], 0.05)[0]:
                break
        check_error(receive(connection), 408)


@pytest.mark.parametrize(
    "first", [b"", b"\r\n", post(INFER, x())], ids=["a new connection", "an empty line", "after an answer"]
)
def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(url: str, first: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(first)
        if first.strip():
            assert receive(connection).status == 200
        assert ended(connection)


def test_the_rest_of_a_body_that_was_refused_does_not_hold_the_connection(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(POST + b"Content-Type: text/plain\r\nContent-Length: 100\r\n\r\n{")
        check_error(receive(connection), 415)
        assert ended(connection)


def test_deadlines_begin_anew_with_each_request(repository: str) -> None:
    """One connection outlives all of them many times over, as long as it is used."""
    limits = Limits(head_s=1, body_s=1, write_s=1, keep_alive_s=1)
    with server_with(repository, limits) as server, connect(server.url) as connection:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            connection.sendall(post(INFER, x()))
            assert receive(connection).status == 200


def test_a_client_that_never_reads_is_cut_off_and_holds_little_meanwhile(server: BackgroundServer) -> None:
    request = post(INFER, b"{}")
    with connect(server.url) as connection:
        connection.setblocking(False)
        sent = 0
        held: list[int] = []
        queued: list[int] = []
        while True:
            with contextlib.suppress(BlockingIOError):
                try:
                    sent += connection.send(request * 100)
                except (ConnectionResetError, BrokenPipeError):
                    break
            for each in connections(server):
                if each.flow is not None and each.flow.write_paused:
                    held.append(len(each.flow.held) + each.transport.get_write_buffer_size())
                    queued.append(len(each.pipeline))
            select.select([], [connection], [], 0.01)
    assert sent > 100 * len(request)
    assert max(queued) <= SHORT.pipelined + (4 << 10) // len(request) + 1
    assert max(held) < 1 << 20
    check_works(server.url)


def test_a_client_that_does_not_read_why_it_was_refused_is_cut_off(server: BackgroundServer) -> None:
    with connect(server.url) as connection:
        connection.sendall(GET + b"X: " + b"v" * (1 << 20))
        wait_until(lambda: not connections(server))
    check_works(server.url)


def test_ten_thousand_ranges_are_ignored(url: str) -> None:
    ranges = "Range: bytes=" + ",".join(["0-1"] * 10_000)
    assert talk(url, post(INFER, x(), ranges, "Connection: close")).status == 200
    answer = talk(url, GET.replace(b"/v2", b"/openapi.json") + ranges.encode() + b"\r\nConnection: close\r\n\r\n")
    assert (answer.status, "content-range" in answer.headers) == (200, False)


def test_every_answer_forbids_to_guess_its_type(url: str) -> None:
    answers: list[Answer] = [talk(url, b"nonsense\r\n\r\n"), talk(url, post(INFER, x(), "Connection: close"))]
    answers += [talk(url, GET + b"Connection: close\r\n\r\n"), talk(url, post(INFER, b"", "Connection: close"))]
    assert [answer.status for answer in answers] == [400, 200, 200, 400]
    assert {answer.headers["x-content-type-options"] for answer in answers} == {"nosniff"}
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "attack",
    [GET + b"X: " + b"v" * (200 << 10), POST + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n"],
    ids=["431", "400"],
)
def test_an_attack_leaves_no_memory_behind(server: BackgroundServer, attack: bytes) -> None:
    def repeat(times: int) -> None:
        for _ in range(times):
            with connect(server.url) as connection:
                connection.sendall(attack)
                assert receive(connection).status in (400, 431)
        wait_until(lambda: not connections(server))

    def growth() -> int:
        before = resident()
        repeat(200)
        return resident() - before

    repeat(200)
    # What leaks does so every time; what the rest of this process does in the meantime, does not.
    assert min(growth() for _ in range(3)) < 2 << 20
    check_works(server.url)


@pytest.mark.parametrize("name", ["head_s", "connections", "pipelined"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"limits.{name} is .*; choose one above 0"):
        Limits(**{name: value})  # type: ignore[arg-type]
