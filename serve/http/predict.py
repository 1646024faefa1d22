"""POST models/{name}/predict: the raw thing in, the answer for people out; one, or many in JSON lines."""

from __future__ import annotations

import asyncio
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from shipline.backends.base import Arrays
from shipline.serve.errors import RequestError, bad
from shipline.serve.http.body import JSON, RawHeaders
from shipline.serve.http.document import parse_json
from shipline.serve.http.endpoints import OFF_LOOP_BYTES, Answer, Headers, PredictionEndpoint, off_loop
from shipline.serve.http.infer import predict_response
from shipline.serve.jobs import Terms
from shipline.serve.model import ServedModel

# A compressed picture is up to a thousand times larger once it is decoded.
OFF_LOOP_FILE_BYTES = 8 << 10
MAX_MANY = 1024

LINES = (b"application/x-ndjson", b"application/jsonlines", b"application/jsonl")
_NPY = (b"content-type", b"application/x-npy")


class PredictEndpoint(PredictionEndpoint):
    """Answers raw inputs."""

    name = "predict"
    route = "/models/{name}/predict"

    def check_type(self, media_type: bytes | None, headers: Headers) -> None:
        """Files are taken as what they are, rows as JSON, texts as JSON or text."""
        if media_type in LINES or (media_type == b"text/plain" and takes_text(self._model)):
            return
        if not takes_bytes(self._model):
            super().check_type(media_type, headers)
        elif (
            media_type is not None
            and not media_type.startswith(b"image/")
            and media_type != b"application/octet-stream"
        ):
            raise RequestError(415, "Send the bytes of an image file, as image/png for example.")

    async def answer(self, body: bytes, headers: Headers, terms: Terms) -> Answer:
        """Return the answer to the raw input in the body, or to each in its lines."""
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media_type in LINES:
            return await self._lines(body, terms)
        limit = OFF_LOOP_FILE_BYTES if takes_bytes(self._model) else OFF_LOOP_BYTES
        inputs = await off_loop(len(body), limit, self._prepare, body, media_type)
        answer = self._model.answer(await self._model.infer(inputs, 1, terms))
        if headers.get(b"accept") == b"application/x-npy":
            return _npy(answer)
        return orjson.dumps(predict_response(self._model.name, self._model.version, answer)), [JSON]

    def _prepare(self, body: bytes, media_type: bytes) -> Arrays:
        if takes_bytes(self._model):
            return self._model.prepare(body)
        if media_type == b"text/plain":
            try:
                return self._model.prepare(body.decode())
            except UnicodeDecodeError:
                raise bad("The text is no UTF-8.") from None
        return self._model.prepare(parse_json(body))

    async def _lines(self, body: bytes, terms: Terms) -> Answer:
        """Answer line by line; a line that is at fault gets its own error and spoils no other."""
        lines = [line for line in body.split(b"\n") if line.strip()]
        found = await predict_many(self._model, lines, _parsed_line, terms)
        name, version = self._model.name, self._model.version
        answers = [
            {"error": one.message} if isinstance(one, RequestError) else predict_response(name, version, one)
            for one in found
        ]
        headers: RawHeaders = [(b"content-type", LINES[0])]
        return b"".join(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE) for answer in answers), headers


async def predict_many(model: ServedModel, raws: Sequence[Any], read: Any, terms: Terms) -> list[Any]:
    """Return for each raw input its answer, or the RequestError that it alone ends with.

    Args:
        model: whom to ask.
        raws: what `read` makes a raw input of.
        read: function of model and item.
        terms: on which each waits.

    Raises:
        RequestError: 400, there are none or too many; 503, they do not all find room.
    """
    if not 1 <= len(raws) <= MAX_MANY:
        raise bad(f"Send 1 to {MAX_MANY} inputs at once; got {len(raws)}.")
    prepared = await asyncio.to_thread(lambda: [_prepared(model, raw, read) for raw in raws])
    return list(await asyncio.gather(*(_asked(model, inputs, terms) for inputs in prepared)))


async def _asked(model: ServedModel, inputs: Arrays | RequestError, terms: Terms) -> Any:
    if isinstance(inputs, RequestError):
        return inputs
    try:
        return model.answer(await model.infer(inputs, 1, terms))
    except RequestError as error:
        if error.status == 503:
            raise
        return error
    except Exception:
        return RequestError(500, "The model failed on this input.")


def _prepared(model: ServedModel, raw: Any, read: Any) -> Arrays | RequestError:
    try:
        return model.prepare(read(model, raw))
    except RequestError as error:
        return error


def _parsed_line(model: ServedModel, line: bytes) -> Any:
    return raw_of(model, parse_json(line))


def raw_of(model: ServedModel, value: Any) -> Any:
    """Return the raw input that a JSON value stands for: bytes as {"b64": "..."}, as TensorFlow Serving writes them."""
    if not takes_bytes(model):
        return value
    if type(value) is not dict or set(value) != {"b64"} or type(value["b64"]) is not str:
        raise bad('This model takes files: send each as {"b64": "..."}, its bytes in base64.')
    try:
        return binascii.a2b_base64(value["b64"], strict_mode=True)
    except ValueError:
        raise bad("'b64' is no base64.") from None


def takes_bytes(model: ServedModel) -> bool:
    """Whether the raw input is the bytes of a file."""
    return model.processing is not None and model.processing.takes_bytes


def takes_text(model: ServedModel) -> bool:
    """Whether the raw input is a text."""
    processing = model.processing
    return processing is not None and not processing.takes_bytes and processing.takes.get("type") == "string"


def _npy(answer: Any) -> Answer:
    """Return an answer of numbers as NumPy's file format, which says their type and shape."""
    array = np.asarray(answer) if isinstance(answer, list) else None
    if array is None or array.dtype.kind not in "fiub":
        raise RequestError(406, "The answer is no array of numbers: accept application/json.")
    file = io.BytesIO()
    np.save(file, array.astype(np.float32) if array.dtype.kind == "f" else array, allow_pickle=False)
    return file.getvalue(), [_NPY]
