"""The endpoints that answer predictions: plain ASGI, because a route of a framework costs as much as all else here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from shipline.serve.errors import RequestError
from shipline.serve.model import ServedModel
from shipline.serve.protocol import infer_response, parse_infer, parse_json, predict_response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20
# Bodies from this size on are parsed in a thread: others are answered meanwhile.
OFF_LOOP_BYTES = 256 << 10
# A compressed file is up to a thousand times larger once it is decoded.
OFF_LOOP_FILE_BYTES = 8 << 10

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = (b"content-type", b"application/json")


class _PredictionEndpoint:
    """Reads a body, answers it, and turns whatever goes wrong into the one shape of errors."""

    name = ""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers = 200, {name: value for name, value in scope["headers"]}  # noqa: C416 -- the last of equals counts
        began = time.perf_counter()
        extra: list[tuple[bytes, bytes]] = []
        if b"x-request-id" in headers:
            extra.append((b"x-request-id", request_id(headers).encode()))
        try:
            if scope["method"] != "POST":
                raise RequestError(405, "Use POST.", {"allow": "POST"})
            _check_encoding(headers)
            self.check_type(_media_type(headers))
            body = await read_body(headers, receive)
            began = time.perf_counter()
            answer = await self.answer(body)
        except RequestError as error:
            status = error.status
            answer, extra = error_answer(error, request_id(headers))
        except Exception:
            status = 500
            identity = request_id(headers)
            logger.exception("Model %r failed on request %s", self._model.name, identity)
            answer, extra = error_answer(RequestError(500, "The model failed on this input."), identity)
        self._model.metrics.answered(self.name, status, time.perf_counter() - began)
        await respond(send, status, answer, extra)

    def check_type(self, media_type: bytes | None) -> None:
        """Raise RequestError 415 unless bodies of this media type are taken; None where the client named none."""
        if media_type not in (None, b"application/json"):
            raise RequestError(415, "Send application/json.")

    async def answer(self, body: bytes) -> bytes:
        """Return the answer's body."""
        raise NotImplementedError


class InferEndpoint(_PredictionEndpoint):
    """POST v2/models/{name}/infer: tensors in, tensors out, in the Open Inference Protocol's JSON."""

    name = "infer"

    async def answer(self, body: bytes) -> bytes:
        """Return the outputs for the tensors in the body."""
        manifest = self._model.manifest
        if len(body) < OFF_LOOP_BYTES:
            request = parse_infer(body, manifest.signature)
        else:
            request = await asyncio.to_thread(parse_infer, body, manifest.signature)
        outputs = await self._model.infer(request.inputs, request.rows)
        return infer_response(manifest.name, manifest.version, request, outputs, manifest.signature)


class PredictEndpoint(_PredictionEndpoint):
    """POST models/{name}/predict: the raw thing in, the answer for people out."""

    name = "predict"

    def check_type(self, media_type: bytes | None) -> None:
        """Files are taken as what they are, rows as JSON."""
        processing = self._model.processing
        if processing is None or not processing.takes_bytes:
            super().check_type(media_type)
        elif (
            media_type is not None
            and not media_type.startswith(b"image/")
            and media_type != b"application/octet-stream"
        ):
            raise RequestError(415, "Send the bytes of an image file, as image/png for example.")

    async def answer(self, body: bytes) -> bytes:
        """Return the answer to the raw input in the body."""
        processing = self._model.processing
        limit = OFF_LOOP_FILE_BYTES if processing is not None and processing.takes_bytes else OFF_LOOP_BYTES
        if len(body) < limit:
            inputs = self._prepare(body)
        else:
            inputs = await asyncio.to_thread(self._prepare, body)
        answer = self._model.answer(await self._model.infer(inputs, 1))
        return orjson.dumps(predict_response(self._model.name, self._model.version, answer))

    def _prepare(self, body: bytes) -> dict[str, Any]:
        processing = self._model.processing
        return self._model.prepare(body if processing is not None and processing.takes_bytes else parse_json(body))


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the body; RequestError 413 as soon as it is known to be too large."""
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
        raise _too_large()
    chunks: list[bytes] = []
    total, more = 0, True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        total += len(chunks[-1])
        if total > MAX_BODY_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
    if message["type"] == "http.disconnect":
        raise RequestError(400, "The body ended early.")
    return b"".join(chunks)  # of one chunk: that chunk itself


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a JSON answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


def error_answer(error: RequestError, identity: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return body and headers of an error, in the one shape that all errors have."""
    headers = [(b"x-request-id", identity.encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return orjson.dumps({"error": error.message, "id": identity}), headers


def request_id(headers: dict[bytes, bytes]) -> str:
    """Return the client's request id where it is a plain one, else one of our own."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _check_encoding(headers: dict[bytes, bytes]) -> None:
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise RequestError(415, "Send the body without a Content-Encoding.")
    if b"inference-header-content-length" in headers:  # what Triton's clients send by default
        raise RequestError(415, "Tensors are taken as JSON here, not as binary data: send them with binary_data=False.")


def _media_type(headers: dict[bytes, bytes]) -> bytes | None:
    given = headers.get(b"content-type")
    return None if given is None else given.partition(b";")[0].strip().lower()


def _too_large() -> RequestError:
    return RequestError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", {"connection": "close"})
