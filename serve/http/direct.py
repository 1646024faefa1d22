"""The shortest way from a connection to a model and back, for the usual request to infer.

No task, no ASGI: its body is parsed as soon as it has arrived, its rows wait for a batch, and the answer is written
when that ends. Whatever is not usual - another method or path, a key to be checked, packed bodies, requests that follow
each other before they are answered - takes the way through the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shipline.errors import InputError
from shipline.serve.errors import RequestError, bad
from shipline.serve.http.body import packed
from shipline.serve.http.cycle import whole
from shipline.serve.http.endpoints import (
    CANCELLED,
    JSON_LENGTH,
    OFF_LOOP_BYTES,
    InferEndpoint,
    described,
    failed,
    packing,
)

if TYPE_CHECKING:
    from shipline.backends.base import Arrays
    from shipline.serve.http.body import RawHeaders
    from shipline.serve.jobs import Job

# Headers that change how a request is read. All others say nothing to who wants tensors, or are seen to here.
_UNUSUAL = frozenset({b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"})
# Of a usual length; what has more has zeros before it, or many bytes to come.
_DIGITS = 9


class _NoEvent:
    """Nobody waits for parts of the body."""

    def set(self) -> None:
        """Do nothing."""


class Direct:
    """One request on this way; to uvicorn's connection it looks like one of its own."""

    message_event = _NoEvent()

    def __init__(self, endpoint: InferEndpoint, headers: dict[bytes, bytes], client: Any, connection: Any) -> None:
        self._endpoint, self._headers, self._client, self._connection = endpoint, headers, client, connection
        self.parts: list[bytes | memoryview] = []
        self.more_body = True
        self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False
        self._began = 0.0
        endpoint.model.enter()
        self._job: Job | None = None
        tracing = endpoint.model.tracing
        self._trace = None if tracing is None else tracing.http(endpoint.route, headers, connection.described())

    def complete(self) -> None:
        """Begin, the body being there."""
        self._began = time.perf_counter()
        try:
            request, self._job = self._endpoint.begin(b"".join(self.parts), self._headers, self._client, self._trace)
        except Exception as error:
            self._fail(error)
            return
        self._job.future.add_done_callback(lambda future: self._done(request, future))

    def cancel(self) -> None:
        """Forget the request: its client is gone."""
        self.disconnected = True
        if self._job is not None:
            self._endpoint.model.forget(self._job)
        took = time.perf_counter() - self._began if self._began else 0.0  # of its body, only a part may have come
        self._endpoint.model.metrics.answered(self._endpoint.name, CANCELLED, took)
        if self._trace is not None:
            self._trace.end(CANCELLED, CANCELLED)
        self._endpoint.model.leave()

    def _done(self, request: Any, future: asyncio.Future[Arrays]) -> None:
        if future.cancelled() or self.disconnected:  # `cancel` may come between the answer and this
            return
        error = future.exception()
        if error is None:
            try:
                self._respond(200, *self._answer(request, future.result()))
                return
            except Exception as caught:
                error = caught
        self._fail(bad(str(error)) if isinstance(error, InputError) else error)

    def _answer(self, request: Any, outputs: Arrays) -> tuple[bytes, RawHeaders]:
        answer, headers = self._endpoint.written(request, outputs)
        by = packing(answer, self._headers) if len(answer) < OFF_LOOP_BYTES else None
        return answer if by is None else packed(answer, by), described(headers, self._headers, by)

    def _fail(self, error: BaseException) -> None:
        self._respond(*failed(error, self._headers, self._endpoint.model.name))

    def _respond(self, status: int, body: bytes, headers: RawHeaders) -> None:
        self._endpoint.model.metrics.answered(self._endpoint.name, status, time.perf_counter() - self._began)
        if self._trace is not None:
            self._trace.end(status, status, dict(headers).get(b"x-request-id", b"").decode())
        self._endpoint.model.leave()
        self.response_started = self.response_complete = True
        connection = self._connection
        all_headers = (*connection.server_state.default_headers, *headers)
        connection.transport.write(whole(status, all_headers, body, keep_alive=self.keep_alive))
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()


class _Refused:
    """A request that was answered at its head; to uvicorn's connection it looks like one of its own."""

    message_event = _NoEvent()
    keep_alive = response_started = response_complete = True
    more_body = disconnected = False


REFUSED = _Refused()


def refuse(endpoint: InferEndpoint, headers: dict[bytes, bytes], error: RequestError, connection: Any) -> None:
    """Answer with the error a request whose body has not arrived, and need not be looked at."""
    model = endpoint.model
    status, body, answered = failed(error, headers, model.name)
    model.metrics.answered(endpoint.name, status, 0.0)
    if model.tracing is not None:
        trace = model.tracing.http(endpoint.route, headers, connection.described())
        if trace is not None:
            trace.end(status, status, dict(answered)[b"x-request-id"].decode())
    all_headers = (*connection.server_state.default_headers, *answered)
    connection.transport.write(whole(status, all_headers, body, keep_alive=True))
    connection.on_response_complete()


def usual(url: bytes, headers: list[tuple[bytes, bytes]], find: Callable[[bytes, bytes], InferEndpoint | None]) -> Any:
    """Return endpoint and headers where a request, a POST with a small body, is the usual one; else None."""
    found = dict(headers)
    length = found.get(b"content-length", b"")
    if len(found) != len(headers) or not found.keys().isdisjoint(_UNUSUAL) or not length.isdigit():
        return None
    kind = found.get(b"content-type", b"application/json")
    if kind != (b"application/octet-stream" if JSON_LENGTH in found else b"application/json"):
        return None
    if len(length) > _DIGITS or int(length) >= OFF_LOOP_BYTES:
        return None
    endpoint = find(url, found.get(b"host", b""))
    return None if endpoint is None else (endpoint, found)
