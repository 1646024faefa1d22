"""How requests may arrive: heads without end, bodies of doubtful length, other protocols, pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bad_requests import x
from connections import GET, INFER, POST, SHORT, connections, headers, read, server_with
from serving import check_error, check_works, connect, post, receive, talk

from shipline.serve.server import BackgroundServer


@pytest.fixture(scope="module")
def server(repository: str) -> Iterator[BackgroundServer]:
    """One with short deadlines."""
    with server_with(repository, SHORT) as server:
        yield server


@pytest.fixture
def url(server: BackgroundServer) -> str:
    """Its URL."""
    return server.url


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * (8 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /" + b"a" * (1 << 20), 414),
        (b"GET /v2?" + b"a=1&" * (1 << 18), 414),
        (GET + b"X: " + b"v" * (64 << 10) + b"\r\n\r\n", 431),
        (GET + b"X: " + b"v" * (20 << 20), 431),
        (GET + b"x" * (1 << 20), 431),
        (GET + headers(260) + b"\r\n", 431),
        (GET + headers(100_000), 431),
        (GET + headers(70, 1000) + b"\r\n", 431),
        (POST + b"Content-Length: 5\r\n" + headers(70, 1000) + b"\r\nhello", 431),
    ],
    ids=range(10),
)
def test_a_head_without_end_is_refused(url: str, head: bytes, status: int) -> None:
    """The client reads why, though it was still sending."""
    answer = talk(url, head)
    check_error(answer, status, "longer than|more than")
    assert answer.closed
    check_works(url)


def test_a_head_in_many_pieces_is_counted_together(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(GET)
        for _ in range(80):
            connection.sendall(b"X: " + b"v" * 1000 + b"\r\n")
        check_error(receive(connection), 431)


def test_a_head_that_is_long_behind_a_body_in_one_packet_is_counted(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(post(INFER, x())[:-1])
        check_works(url)  # so the first part was heard by now
        connection.sendall(x()[-1:] + GET + headers(70, 1000) + b"\r\n")
        with connection.makefile("rb") as stream:
            assert read(stream).status == 200
            check_error(read(stream), 431)


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        b"0\r\n" + b"X: v\r\n" * 100_000,
        b"0\r\nX: " + b"v" * (20 << 20),
        b"0\r\n" + b"x" * (1 << 20),
        b"1;" + b"x" * (1 << 20),
    ],
    ids=["headers", "a value", "a name", "an extension"],
)
def test_what_is_no_body_within_a_body_has_an_end_too(url: str, rest: bytes) -> None:
    answer = talk(url, POST + CHUNKED + b"1\r\n{\r\n" + rest)
    check_error(answer, 431, "more than")
    assert answer.closed
    check_works(url)


def test_a_body_in_tiny_chunks_may_have_more_around_it_than_a_head(url: str) -> None:
    chunks = b"".join(b"1;%b\r\n%c\r\n" % (b"x" * 1000, byte) for byte in x())
    assert len(chunks) > 64 << 10
    assert talk(url, POST + CHUNKED + chunks + b"0\r\n\r\n").status == 200


@pytest.mark.parametrize(
    "trailer", [b"Host: elsewhere", b"Content-Encoding: br", b"Content-Type: text/plain", b"X-Request-Id: theirs"]
)
def test_headers_behind_the_body_change_nothing(url: str, trailer: bytes) -> None:
    body = b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(x()), x(), trailer)
    answer = talk(url, POST + CHUNKED + body)
    assert answer.status == 200, answer
    assert "x-request-id" not in answer.headers


@pytest.mark.parametrize(
    "more",
    [b"", b"X: " + b"v" * 60_000 + b"\r\n", headers(250), headers(60, 1000)],
    ids=["none", "long", "many", "both"],
)
def test_a_head_within_the_limits_is_taken(url: str, more: bytes) -> None:
    with connect(url) as connection:
        for _ in range(3):  # what one request had does not count for the next
            connection.sendall(GET + more + b"\r\n")
            assert receive(connection, "GET").status == 200


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: \r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5\r\n folded\r\n",
        b"X: a\nContent-Length: 5\r\n",
    ],
)
def test_a_body_of_doubtful_length_is_400_and_nothing_behind_it_is_heard(url: str, lines: bytes) -> None:
    behind = b"0\r\n\r\n" + GET + b"\r\n"
    answer = talk(url, POST + lines + b"\r\n5\r\nhello\r\n" + behind)
    check_error(answer, 400, "not HTTP|Transfer-Encoding")
    assert answer.closed  # and not a second answer
    check_works(url)


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["at once", "when asked to"])
@pytest.mark.parametrize(
    "line",
    [b"Content-Length: %b%d" % (b"0" * 5000, len(x())), b"Content-Length: %d \t" % len(x())],
    ids=["zeros", "spaces"],
)
def test_a_length_may_have_zeros_before_it_and_spaces_behind_it(url: str, line: bytes, expect: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(POST + expect + line + b"\r\n\r\n" + x())
        with connection.makefile("rb") as stream:
            if expect:
                assert stream.readline() + stream.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert read(stream).status == 200


def test_a_client_of_1_0_is_not_told_to_go_on(url: str) -> None:
    """It would take that for the answer."""
    request = post(INFER, x(), "Expect: 100-continue").replace(b" HTTP/1.1", b" HTTP/1.0")
    with connect(url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request)
        assert read(stream).status == 200


def test_spaces_behind_a_header_are_no_part_of_it(url: str) -> None:
    head = POST.replace(b"localhost", b"localhost \t") + b"X-Request-Id: mine \r\nTransfer-Encoding: chunked \r\n\r\n"
    answer = talk(url, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(x()), x()))
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v2 HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v2 HTTP/1.1\nHost: localhost\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    ],
    ids=["0.9", "9.9", "h2", "no slash", "connect", "chunked 1.0", "bare LF", "TLS"],
)
def test_another_protocol_is_400(url: str, request_: bytes) -> None:
    answer = talk(url, request_)
    check_error(answer, 400, "not HTTP|Host header|Transfer-Encoding")
    assert answer.closed
    check_works(url)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_made(url: str, protocol: bytes) -> None:
    """What follows is of another protocol, so the connection ends."""
    answer = talk(url, GET + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n" + GET + b"\r\n")
    assert (answer.status, answer.closed) == (200, True)


@pytest.mark.parametrize("pause", [False, True], ids=["in one packet", "in two"])
@pytest.mark.parametrize("more", [0, 100_000], ids=["small", "large"])
def test_a_body_that_comes_with_a_wish_to_upgrade_is_heard(url: str, more: int, pause: bool) -> None:
    """Java's client and curl --http2 wish so with whatever they send first."""
    body = x() + b" " * more
    head = POST + b"Content-Length: %d\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n" % len(body)
    with connect(url) as connection, connection.makefile("rb") as stream:
        connection.sendall(head + body[:10] if pause else head + body + GET + b"\r\n")
        if pause:
            check_works(url)  # so the first part was heard by now
            connection.sendall(body[10:] + GET + b"\r\n")
        answer = read(stream)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert stream.read() == b""


# --- pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{}", b"{" + b" " * 5000], ids=["small", "larger than a piece"])
def test_ten_thousand_requests_at_once_are_answered_in_order(url: str, body: bytes) -> None:
    count = 10_000 if len(body) < 100 else 1000
    requests = b"".join(post(INFER, body, f"X-Request-Id: {number}") for number in range(count))
    with connect(url) as connection, ThreadPoolExecutor(1) as pool, connection.makefile("rb") as stream:
        sending = pool.submit(connection.sendall, requests)
        for number in range(count):
            answer = read(stream)
            assert answer.headers["x-request-id"] == str(number), answer
        sending.result()
    check_works(url)


def test_a_flood_of_tiny_requests_behind_a_body_is_not_taken_at_once(server: BackgroundServer) -> None:
    tiny = b"GET / HTTP/1.1\r\n\r\n"
    queued: list[int] = []
    with connect(server.url) as connection, ThreadPoolExecutor(1) as pool, connection.makefile("rb") as stream:
        connection.sendall(POST + b"Content-Length: 1000001\r\n\r\n" + b" " * 1_000_000)
        sending = pool.submit(connection.sendall, b" " + tiny * 10_000)
        assert read(stream).status == 400
        for _ in range(10_000):
            assert read(stream).status == 400
            queued += [len(each.pipeline) for each in connections(server)]
        sending.result()
    assert 0 < max(queued) <= SHORT.pipelined + (16 << 10) // len(tiny) + 1
    check_works(server.url)


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (GET + b"X: " + b"v" * (70 << 10) + b"\r\n\r\n", 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n", 400),
        (POST + b"Content-Le", 408),
        (POST + b"Content-Length: 10\r\n\r\n", 408),
    ],
    ids=["no HTTP", "a long head", "a bad chunk", "half a head", "half a request"],
)
@pytest.mark.parametrize("before", [1, 3])
def test_what_was_asked_before_a_bad_request_is_answered_before_it(
    url: str, second: bytes, status: int, before: int
) -> None:
    with connect(url) as connection:
        connection.sendall(post(INFER, x()) * before + second)
        with connection.makefile("rb") as stream:
            assert [read(stream).status for _ in range(before)] == [200] * before
            check_error(read(stream), status)
            assert stream.read() == b""
