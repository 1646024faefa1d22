"""Servers that soon give up on a connection, and what hostile clients send them."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
from collections.abc import Iterator

import pytest
from serving import Answer, connect

from shipline.serve.http import listening
from shipline.serve.http.connection import Connection
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import Limits, ServerSettings

INFER = "/v2/models/linear/infer"
GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
POST = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode()
SHORT = Limits(head_s=2, body_s=2, write_s=2, keep_alive_s=2, connections=64)
LIVE = "/v2/health/live"


@contextlib.contextmanager
def server_with(repository: str, limits: Limits, **settings: int) -> Iterator[BackgroundServer]:
    """A server that looks at its connections twenty times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "SWEEP_S", 0.05)
        with BackgroundServer(repository, settings=ServerSettings(limits=limits, **settings)) as server:
            yield server


def connections(server: BackgroundServer) -> list[Connection]:
    """Those that the server has now."""
    return [each for each in server._serving._server.server_state.connections if isinstance(each, Connection)]


def ended(connection: socket.socket) -> bool:
    """Wait for the server to close."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def read(stream: io.BufferedReader) -> Answer:
    """The next of several answers on one connection."""
    status = int(stream.readline().split()[1])
    lines = [line.decode().rstrip().split(": ", 1) for line in itertools.takewhile(bytes.strip, stream)]
    found = dict(lines)
    return Answer(status, found, stream.read(int(found["content-length"])))


def headers(count: int, size: int = 1) -> bytes:
    return b"".join(b"X-%d: %b\r\n" % (number, b"v" * size) for number in range(count))


def crowd(stack: contextlib.ExitStack, url: str, count: int, first: bytes = b"") -> list[socket.socket]:
    """So many connections, each of which has sent the same."""
    sockets = [stack.enter_context(connect(url)) for _ in range(count)]
    for each in sockets:
        each.sendall(first)
    return sockets
