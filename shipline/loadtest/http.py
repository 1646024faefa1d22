"""HTTP/1.1 for a load generator: as little as there can be between a request's bytes and its answer's.

A full client (httpx) takes most of a millisecond for each request, which on a small model is more than the server does:
one would measure the client. Here a request is bytes that were made once, and of an answer only what frames it is read.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from time import monotonic
from typing import cast

import httpx

from shipline.client.requests import Reply

MAX_HEAD_BYTES = 64 << 10

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked")
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


class BadAnswerError(ValueError):
    """What came is no answer in HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its head as it came."""

    status: int
    head: bytes
    body: bytes

    def reply(self) -> Reply:
        """Return it as the clients read it."""
        first, *lines = self.head.decode("latin-1").split("\r\n")
        headers = (line.partition(":") for line in lines if line)
        reason = first.split(" ", 2)[2:]
        return Reply(self.status, {n.lower(): v.strip() for n, _, v in headers}, self.body, "".join(reason))


class AnswerReader:
    """Reads the answers off the bytes of one connection, however these are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: bytes | None = None
        self._lower = b""
        self._length: int | None = None  # None: chunked, or until the connection ends
        self._chunks: list[bytes] | None = None
        self.closes = False  # whether the server says that it closes behind the answer

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes; return the answer that they complete.

        Raises:
            BadAnswerError: this is no HTTP, or there is something behind the answer.
        """
        self._buffer += data
        while self._head is None:
            if not self._read_head():
                return None
        if self._chunks is not None:
            return self._read_chunks()
        if self._length is None or len(self._buffer) < self._length:
            return None
        if len(self._buffer) > self._length:
            raise BadAnswerError("There are bytes behind the answer.")
        return self._finished(bytes(self._buffer))

    def end(self) -> Answer | None:
        """The connection has ended: return the answer that this completes."""
        if self._head is None or self._length is not None or self._chunks is not None:
            return None
        return self._finished(bytes(self._buffer))

    def _read_head(self) -> bool:
        """Whether there is a whole head; one of an interim answer (1xx) is dropped."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadAnswerError("The head of an answer does not end.")
            return False
        head = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 4]
        found = _STATUS_LINE.match(head)
        if found is None:
            raise BadAnswerError("There is no status line of HTTP/1.1.")
        status = int(found[1])
        if status < 200:
            return self._read_head()
        self._head, self._status, lower = head, status, head.lower()
        self.closes = _CLOSE.search(lower) is not None
        length = _LENGTH.search(lower)
        if status in (204, 304):
            self._length = 0
        elif _CHUNKED.search(lower):
            self._chunks = []
        elif length is not None:
            self._length = int(length[1])
        else:
            self.closes = True
        return True

    def _read_chunks(self) -> Answer | None:
        assert self._chunks is not None
        while (end := self._buffer.find(b"\r\n")) >= 0:
            try:
                size = int(self._buffer[:end].partition(b";")[0], 16)
            except ValueError:
                raise BadAnswerError("There is a chunk without its size.") from None
            if size == 0:
                return self._read_trailer(end)
            after = end + 2 + size
            if len(self._buffer) < after + 2:
                return None
            self._chunks.append(bytes(self._buffer[end + 2 : after]))
            del self._buffer[: after + 2]
        return None

    def _read_trailer(self, end: int) -> Answer | None:
        """The fields behind the last chunk are dropped; an empty line ends them."""
        assert self._chunks is not None
        if self._buffer[end : end + 4] != b"\r\n\r\n" and (end := self._buffer.find(b"\r\n\r\n")) < 0:
            return None
        if len(self._buffer) > end + 4:
            raise BadAnswerError("There are bytes behind the answer.")
        return self._finished(b"".join(self._chunks))

    def _finished(self, body: bytes) -> Answer:
        assert self._head is not None
        answer = Answer(self._status, self._head, body)
        self._buffer.clear()
        self._head = self._length = self._chunks = None
        return answer


class Connection(asyncio.Protocol):
    """A connection to a server: one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self.used = monotonic()  # when it was last

    @classmethod
    async def open(cls, url: httpx.URL, context: ssl.SSLContext | None) -> Connection:
        """Connect; OSError where that fails."""
        port = url.port or (443 if context else 80)
        _, connection = await asyncio.get_running_loop().create_connection(cls, url.host, port, ssl=context)
        return connection

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._transport is None or self._transport.is_closing()

    def ask(self, message: bytes) -> asyncio.Future[Answer]:
        """Send a request; the answer comes, or a ConnectionError or BadAnswerError."""
        assert self._transport is not None
        self._waiting = self._loop.create_future()
        self._transport.write(message)
        return self._waiting

    def close(self) -> None:
        """End the connection, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no class of asyncio

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._reader.feed(data)
        except BadAnswerError as error:
            self._end(error)
            self.close()
            return
        if answer is not None:
            self._give(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        answer = self._reader.end() if exc is None else None
        if answer is not None:
            self._give(answer)
        self._end(ConnectionError("The connection ended before the answer did."))

    def _give(self, answer: Answer) -> None:
        self.used = monotonic()
        if self._reader.closes:
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def _end(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


def to_bytes(request: httpx.Request) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    return b"\r\n".join([*lines, b"", b""]) + request.read()
