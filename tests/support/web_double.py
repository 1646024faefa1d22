"""A web server that answers as a test says, over connections that are kept."""

from __future__ import annotations

import http.server
import itertools
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What a client sent; the names of the headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Say = tuple[int, Mapping[str, str], bytes]
GOOD: Say = (200, {}, b'{"label": "7"}')


def busy(status: int = 503, **headers: str) -> Say:
    """What a server says that could not answer now; headers have _ for -."""
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"error": "busy"}'


def in_turn(*answers: Say) -> Callable[[Asked], Say]:
    """One answer after the other; the last for ever."""
    left = iter(itertools.chain(answers, itertools.repeat(answers[-1])))
    return lambda asked: next(left)


@contextmanager
def double(answer: Callable[[Asked], Say], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that answers so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra, content = answer(Asked(self.command, self.path, headers, body))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that is gone, or that trusts no certificate, is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
