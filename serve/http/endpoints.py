"""The endpoints that answer predictions: plain ASGI, because a route of a framework costs as much as all else here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import orjson

from shipline.backends.base import Arrays
from shipline.serve.errors import RequestError, bad
from shipline.serve.http import body as bodies
from shipline.serve.http.body import BINARY, JSON, RawHeaders, Receive, Scope, Send, read_body, respond
from shipline.serve.http.cycle import GONE, TASK
from shipline.serve.http.infer import InferRequest, infer_response, parse_infer
from shipline.serve.jobs import Job, Terms
from shipline.serve.model import ServedModel

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[bytes, bytes]
Answer = tuple[bytes, RawHeaders]

logger = logging.getLogger(__name__)

# Bodies from this size on are parsed in a thread: others are answered meanwhile.
OFF_LOOP_BYTES = 256 << 10
# Packed ones sooner: they are up to a thousand times larger.
OFF_LOOP_PACKED_BYTES = 8 << 10

# What a request ends with, for who watches, when its sender is gone.
CANCELLED = 499

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
JSON_LENGTH = b"inference-header-content-length"


class PredictionEndpoint(ABC):
    """Reads a body, answers it, and turns whatever goes wrong into the one shape of errors."""

    name = ""
    route = ""  # of the path, for traces

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    @property
    def model(self) -> ServedModel:
        """Whom it asks."""
        return self._model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._model.enter()
        try:
            await self._respond(scope, receive, send)
        finally:
            self._model.leave()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers = 200, {name: value for name, value in scope["headers"]}  # noqa: C416 -- the last of equals counts
        began = time.perf_counter()
        tracing = self._model.tracing
        trace = None if tracing is None else tracing.http(self.route, headers, scope)
        try:
            if scope["method"] != "POST":
                raise RequestError(405, "Use POST.", {"allow": "POST"})
            encoding = self._check_head(headers)
            body = await read_body(headers, receive)
            began = time.perf_counter()
            self._model.check_room()
            if encoding is not None:
                body = await off_loop(len(body), OFF_LOOP_PACKED_BYTES, bodies.unpacked, body, encoding)
            scope[TASK] = asyncio.current_task()
            answer, extra = await self.answer(body, headers, Terms(client=scope["client"], trace=trace))
            if by := packing(answer, headers):
                answer = await off_loop(len(answer), OFF_LOOP_BYTES, bodies.packed, answer, by)
            extra = described(extra, headers, by)
        except Exception as error:
            status, answer, extra = failed(error, headers, self._model.name)
        except asyncio.CancelledError:
            self._model.metrics.answered(self.name, CANCELLED, time.perf_counter() - began)
            if trace is not None:
                trace.end(CANCELLED, CANCELLED)
            if GONE in scope:
                return
            raise  # the server is ended
        finally:
            scope.pop(TASK, None)  # what has been answered is cancelled no more
        self._model.metrics.answered(self.name, status, time.perf_counter() - began)
        if trace is not None:
            trace.end(status, status, dict(extra).get(b"x-request-id", b"").decode())
        await respond(scope, send, status, answer, extra)

    def _check_head(self, headers: Headers) -> bytes | None:
        """Return how the body is packed; RequestError where it need not be read."""
        encoding = bodies.encoding(headers)
        self.check_type(media_type_of(headers), headers)
        if b"expect" not in headers:  # who waits to be asked for his body may not send it behind an answer
            self._model.check_room()
        return encoding

    def check_type(self, media_type: bytes | None, headers: Headers) -> None:
        """Raise RequestError 415 unless bodies of this media type are taken; None where the client named none."""
        if media_type not in (None, b"application/json"):
            raise RequestError(415, "Send application/json.")

    @abstractmethod
    async def answer(self, body: bytes, headers: Headers, terms: Terms) -> Answer:
        """Return the answer's body and headers.

        Args:
            body: of the request, unpacked.
            headers: of the request.
            terms: on which its rows wait, where it does not say more.
        """


class InferEndpoint(PredictionEndpoint):
    """POST v2/models/{name}/infer: tensors in, tensors out, in the Open Inference Protocol's JSON and binary form."""

    name = "infer"
    route = "/v2/models/{name}/infer"

    def check_type(self, media_type: bytes | None, headers: Headers) -> None:
        """Tensors behind the JSON make the whole something else than JSON."""
        if media_type != b"application/octet-stream" or JSON_LENGTH not in headers:
            super().check_type(media_type, headers)

    async def answer(self, body: bytes, headers: Headers, terms: Terms) -> Answer:
        """Return the outputs for the tensors in the body."""
        length, model = _json_length(headers), self._model
        asked = (body, model.manifest.signature, length, model.name)
        if (len(body) if length is None else length) < OFF_LOOP_BYTES:  # the bytes behind are taken as they lie
            request = parse_infer(*asked)
        else:
            request = await asyncio.to_thread(parse_infer, *asked)
        own = Terms(request.priority, terms.client, request.timeout_s, terms.trace)
        return self.written(request, await model.infer(request.inputs, request.rows, own))

    def begin(self, body: bytes, headers: Headers, client: Hashable, trace: object) -> tuple[InferRequest, Job]:
        """Return a request with a small body, and the job that its rows wait as."""
        request = parse_infer(body, self._model.manifest.signature, _json_length(headers), self._model.name)
        terms = Terms(request.priority, client, request.timeout_s, trace)
        return request, self._model.begin(request.inputs, request.rows, terms)

    def written(self, request: InferRequest, outputs: Arrays) -> Answer:
        """Return the answer with these outputs."""
        manifest = self._model.manifest
        answer, length = infer_response(manifest.name, manifest.version, request, outputs, manifest.signature)
        if length is None:
            return answer, [JSON]
        return answer, [BINARY, (JSON_LENGTH, str(length).encode())]


def failed(error: BaseException, headers: Headers, model: str) -> tuple[int, bytes, RawHeaders]:
    """Return status, body and headers for what a request ended with; what is no fault of its sender's is logged."""
    identity = request_id(headers)
    if isinstance(error, RequestError):
        return error.status, *error_answer(error, identity)
    logger.error("Model %r failed on request %s", model, identity, exc_info=error)
    return 500, *error_answer(RequestError(500, "The model failed on this input."), identity)


def error_answer(error: RequestError, identity: str) -> Answer:
    """Return body and headers of an error, in the one shape that all errors have."""
    headers = [JSON, (b"x-request-id", identity.encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return orjson.dumps({"error": error.message, "id": identity}), headers


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    """Answer a request whose headers alone are at fault."""
    body, extra = error_answer(error, request_id(dict(scope["headers"])))
    await respond(scope, send, error.status, body, [*extra, (b"connection", b"close")])


def request_id(headers: Headers) -> str:
    """Return the client's request id where it is a plain one, else one of our own."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def off_loop(size: int, limit: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function; in a thread where `size` is not below `limit`."""
    return function(*arguments) if size < limit else await asyncio.to_thread(function, *arguments)


def packing(answer: bytes, asked: Headers) -> bytes | None:
    """Return what to pack an answer by; None where the client does not like that, or it is not worth it."""
    return bodies.likes(asked) if len(answer) >= bodies.WORTH_PACKING_BYTES else None


def described(headers: RawHeaders, asked: Headers, packed_by: bytes | None) -> RawHeaders:
    """Return the headers of an answer, with those that say how it is packed and whose it is."""
    if packed_by is not None:
        headers = [*headers, (b"content-encoding", packed_by), (b"vary", b"accept-encoding")]
    if b"x-request-id" in asked:
        headers = [*headers, (b"x-request-id", request_id(asked).encode())]
    return headers


def _json_length(headers: Headers) -> int | None:
    given = headers.get(JSON_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12:
        raise bad("Inference-Header-Content-Length must be a whole number: the bytes of the JSON.")
    return int(given)


def media_type_of(headers: Headers) -> bytes | None:
    """Return the body's media type, without its parameters; None where the client named none."""
    given = headers.get(b"content-type")
    return None if given is None else given.partition(b";")[0].strip().lower()
