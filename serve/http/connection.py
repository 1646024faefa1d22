"""A connection: uvicorn's, with an end to what a client may send, how long it may take, and how little it may read."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Iterable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from shipline.serve.errors import RequestError, bad, overloaded
from shipline.serve.http.cycle import forget, taking_whole, whole
from shipline.serve.http.direct import REFUSED, Direct, refuse, usual
from shipline.serve.http.endpoints import error_answer
from shipline.serve.http.gate import HEALTH, App
from shipline.serve.settings import Limits

# What the connection waits for: a request, the rest of its head, the rest of its body.
_NOTHING, _HEAD, _BODY = range(3)

# What arrives is parsed in pieces: many requests in one packet do not all become objects at once.
_PIECE = 4 << 10
_PIECE_OF_BODY = 16 << 10
# Connections beyond the limit, which may ask for health.
_EXTRA = 64
# How long a client that was refused may go on sending: closed at once, it would be reset before it has read why.
_LINGER_S = 2.0


class Config(uvicorn.Config):
    """uvicorn's settings for connections within limits."""

    def __init__(self, app: App, limits: Limits, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        super().__init__(
            app,
            http=Connection,
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("x-content-type-options", "nosniff")],
            ssl_context_factory=None if tls is None else lambda config, default: tls,
            **options,
        )
        self.limits = limits


class _Flow(FlowControl):
    """Does not read on while bytes that were read already are held back."""

    held = b""

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One client's connection. Deadlines are kept by `sweep`, for all connections at once, and not by timers."""

    flow: _Flow
    cycle: Any  # uvicorn's, or a Direct

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._awaited = _NOTHING
        self._since = 0.0  # the client could send what is awaited
        self._head_bytes = 0  # that have come since a head began, or within a body since its last part
        self._piece = self._begun_in = 0
        self._deaf = False
        self._refusal: RequestError | None = None
        self._crowded = False
        self._unread_since: float | None = None
        self._closing_since: float | None = None
        self._left = 0  # bytes of a body that is taken as it comes, the parser having nothing to find in it
        self._answered: Any = None  # the cycle that is being answered, which others may have come behind

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; make room for it, or let it ask for health alone."""
        limit, found = self._limits.connections, len(self.connections)
        self._crowded = found >= limit and not _make_room(self.connections)
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._since = self.loop.time()
        self._find = getattr(self.app, "direct", None)
        if self._crowded:
            self._find = None
            if found >= limit + _EXTRA:
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, a piece at a time, as far as there is room for requests."""
        if self.flow.held:
            self.flow.held += data
            return
        if len(data) <= _PIECE and not self.pipeline and not self._deaf and not self._left:
            self._feed(data)
            return
        rest = memoryview(data)
        while rest and not self._deaf:
            if len(self.pipeline) >= self._limits.pipelined:
                self.flow.pause_reading()
                self.flow.held = bytes(rest)
                return
            if self._left:
                size = min(self._left, len(rest))
                self._take(rest[:size])
            else:
                size = _PIECE_OF_BODY if self._awaited == _BODY and not self.pipeline else _PIECE
                self._feed(rest[:size])
            rest = rest[size:]

    def _take(self, part: memoryview) -> None:
        """Take a part of a body past the parser, which would copy it."""
        self._left -= len(part)
        if type(self.cycle) is Direct:
            self.cycle.parts.append(part)
        elif self.cycle is not REFUSED:
            super().on_body(bytes(part))
        if not self._left:
            self._deaf = not self.cycle.keep_alive
            self.parser = httptools.HttpRequestParser(self)  # the old one stands within the body
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._since = self.loop.time()
            self.on_message_complete()

    def _feed(self, piece: bytes | memoryview) -> None:
        awaited = self._awaited
        self._piece = len(piece)
        try:
            self.parser.feed_data(piece)
            if awaited != _NOTHING and awaited == self._awaited:
                self._head_bytes += self._piece
                if self._head_bytes > self._limits.head_bytes:
                    raise self._head_too_large()
        except RequestError as error:
            self._refuse(error)
        except httptools.HttpParserUpgrade as upgrade:  # answered as if it were not asked for
            self.cycle.keep_alive = False
            if self._left:
                self._take(memoryview(piece)[upgrade.args[0] :][: self._left])
            else:  # what follows is not HTTP
                self._deaf = True
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestError) else bad("This is not HTTP."))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._awaited = _HEAD
        self._since = self.loop.time()
        self._head_bytes, self._begun_in = 0, self._piece

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self.url += url
        if len(self.url) > self._limits.url_bytes:
            raise RequestError(414, f"The URL is longer than {self._limits.url_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. One behind the body is read past: it has been decided by then who may ask what, of whom."""
        if self._awaited == _BODY:
            return
        name, value = name.lower(), value.rstrip(b" \t")  # before it, the parser has done so
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue" and self.parser.get_http_version() != "1.0"
        elif name == b"transfer-encoding" and (
            value.lower() != b"chunked"
            or self.parser.get_http_version() != "1.1"
            or any(name == b"transfer-encoding" for name, _ in self.headers)
        ):
            raise bad("The one Transfer-Encoding here is 'chunked'.")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start answering, or queue the request behind the one that is being answered."""
        at_most = self._begun_in + self._head_bytes + self._piece
        if len(self.headers) > self._limits.headers or (
            at_most > self._limits.head_bytes and self._head() > self._limits.head_bytes
        ):
            raise self._head_too_large()
        if self._begin_direct():
            return
        if self._crowded and self.url.decode("latin-1") not in HEALTH:  # not even the body is waited for
            raise overloaded("Too many connections. Try again in a second.")
        super().on_headers_complete()
        if len(self.pipeline) < self._limits.pipelined:
            self.flow.resume_reading()  # uvicorn would not hear that the client is gone
        taking_whole(self.cycle)  # uvicorn makes its own kind, and its task has not begun
        self._awaited, self._head_bytes = _BODY, -self._piece
        if self._crowded:
            self.cycle.keep_alive = False

    def _begin_direct(self) -> bool:
        """Take the shortest way, where the request is a usual one and nothing stands before it."""
        before, parser = self.cycle, self.parser
        if self._find is None or (before is not None and not before.response_complete):
            return False
        if self.flow.write_paused or self.expect_100_continue:
            return False
        if parser.get_method() != b"POST" or not parser.should_keep_alive() or parser.should_upgrade():
            return False
        found = usual(self.url, self.headers, self._find)
        if found is None:
            return False
        endpoint, headers = found
        self._awaited = _BODY
        try:
            endpoint.model.check_room()
        except RequestError as error:
            self.cycle = self._answered = REFUSED  # and its body is read past, which spares the client a new connection
            refuse(endpoint, headers, error, self)
        else:
            self.cycle = self._answered = Direct(endpoint, headers, self.client, self)
        self._left = int(headers[b"content-length"])
        return True

    def described(self) -> dict[str, Any]:
        """Return what is known of the request without the application: as much of ASGI's scope as traces tell."""
        return {
            "path": self.url.decode("latin-1"),
            "scheme": self.scheme,
            "http_version": self.parser.get_http_version(),
            "client": self.client,
        }

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._left:
            self._head_bytes = -self._piece
            super().on_body(body)
            return
        self._left -= len(body)
        if self.cycle is not REFUSED:
            self.cycle.parts.append(body)

    def on_message_complete(self) -> None:
        """A request has arrived; or all of it that the parser sees, who takes no body where an upgrade is wanted."""
        if type(self.cycle) is not Direct and self.parser.should_upgrade():
            self._left = int(dict(self.headers).get(b"content-length", 0))
            if self._left:
                return
        self._awaited = _NOTHING
        if type(self.cycle) is Direct and self.cycle.more_body:
            self.cycle.more_body = False
            self.cycle.complete()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we are done with it."""
        super().connection_lost(exc)
        self.pipeline.clear()
        answered = self._answered
        if answered is None or answered.response_complete:
            return
        if type(answered) is Direct:
            answered.cancel()
        else:
            forget(answered)

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._since = self.loop.time()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._say(self._refusal)
        else:
            self.flow.resume_reading()
        if self.flow.held and len(self.pipeline) < self._limits.pipelined:
            held, self.flow.held = self.flow.held, b""
            self.data_received(held)
            if not self.pipeline:
                self.flow.resume_reading()

    def pause_writing(self) -> None:
        """More waits for the client than should."""
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        """The client has read most of what waited for it."""
        super().resume_writing()
        self._unread_since = None

    @property
    def idle_since(self) -> float | None:
        """Since when nothing has been asked, nor is being answered."""
        if self._awaited != _NOTHING or self._deaf or self._answering() or self.transport.is_closing():
            return None
        return self._since

    def sweep(self, now: float) -> None:
        """End what has taken too long."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
        unread = self._closing_since or self._unread_since
        if unread is not None:
            if now - unread > self._limits.write_s:
                self.transport.abort()
        elif now - self._since > self._allowed_s():
            if self._deaf or (self._awaited == _NOTHING):
                self.transport.close()
            else:
                self._refuse(RequestError(408, "The request did not arrive in time."))

    def _allowed_s(self) -> float:
        """How long the client may keep silent."""
        if self._answering():
            return float("inf")
        if self._deaf:
            return _LINGER_S
        if self._awaited == _BODY:
            return self._limits.body_s
        if self._awaited == _HEAD or self.cycle is None:
            return self._limits.head_s
        return self._limits.keep_alive_s

    def _answering(self) -> bool:
        """Whether it is not the client's turn."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return bool(self.pipeline) or self._awaited != _BODY or self.flow.read_paused

    def _refuse(self, error: RequestError) -> None:
        """Take no more; say why, after the answers that are owed."""
        self._deaf = True
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and self._awaited != _BODY):
            self._say(error)
        elif cycle.response_complete or cycle.response_started:
            self.transport.close()
        elif self._awaited != _BODY:
            self._refusal = error
        elif self.pipeline:
            self.pipeline.popleft()  # the request at fault itself
            self._refusal = error
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._say(error)

    def _say(self, error: RequestError) -> None:
        """Send the error and end the connection: our side at once, the client's when it has read it."""
        body, headers = error_answer(error, uuid.uuid4().hex)
        all_headers = (*self.server_state.default_headers, *headers)
        self.transport.write(whole(error.status, all_headers, body, keep_alive=False))
        self._since = self.loop.time()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()

    def _head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_too_large(self) -> RequestError:
        limits = self._limits
        return RequestError(431, f"The headers are more than {limits.head_bytes} bytes, or more than {limits.headers}.")


def _make_room(connections: Iterable[Any]) -> bool:
    """Close the connection that has been idle for longest; return whether there was one."""
    idle = [(connection.idle_since, connection) for connection in connections if connection.idle_since is not None]
    if not idle:
        return False
    min(idle, key=lambda pair: pair[0])[1].transport.close()
    return True
