"""How the load test reads answers of HTTP: whole or in pieces, cut off, without a body, and what is none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from shipline.client import requests
from shipline.loadtest.http import AnswerReader, BadAnswerError

PLAIN = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN, CHUNKED + b"\r\n", CHUNKED + b"trailer: 1\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN,
        b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\nHTTP/1.1 100\r\n\r\n" + PLAIN,
    ],
)  # fmt: skip
@given(data_=st.data())
def test_an_answer_is_read_however_it_is_cut(data: bytes, data_: st.DataObject) -> None:
    """And the next one behind it, over the same connection."""
    reader = AnswerReader()
    for _ in range(2):
        cuts = sorted(data_.draw(st.sets(st.integers(1, len(data) - 1), max_size=4)))
        pieces = [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]
        assert [reader.feed(piece) for piece in pieces[:-1]] == [None] * len(cuts)
        answer = reader.feed(pieces[-1])
        assert answer is not None
        assert (answer.status, answer.body) == (200, b"hello")
    assert answer.reply().reason == "OK"
    assert not reader.closes


def test_an_answer_until_the_connection_ends() -> None:
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.0 503 Busy  now\r\nRetry-After: 1\r\n\r\nhel") is None
    assert reader.feed(b"lo") is None
    answer = reader.end()
    assert answer is not None
    assert answer.reply() == requests.Reply(503, {"retry-after": "1"}, b"hello", "Busy  now")
    assert reader.closes


@pytest.mark.parametrize("data", [PLAIN, CHUNKED + b"\r\n"])
def test_an_answer_that_is_cut_off_is_none(data: bytes) -> None:
    for length in range(len(data)):
        reader = AnswerReader()
        assert reader.feed(data[:length]) is None
        assert reader.end() is None


def test_an_answer_without_a_body() -> None:
    answer = AnswerReader().feed(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert answer is not None
    assert (answer.status, answer.body) == (204, b"")
    reader = AnswerReader()
    assert reader.feed(PLAIN.replace(b"A: b", b"Connection: close")) is not None
    assert reader.closes


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0\r\n\r\n", b"HTTP/2 200\r\n\r\n", PLAIN + b"x", CHUNKED + b"\r\nx", b"x" * 70_000,
        CHUNKED.replace(b"3\r\n", b"z\r\n"),
    ],
)  # fmt: skip
def test_what_is_no_http(data: bytes) -> None:
    with pytest.raises(BadAnswerError):
        AnswerReader().feed(data)
