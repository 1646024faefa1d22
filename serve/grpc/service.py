"""The methods of the protocol. They know messages and calls; the models behind them know of neither."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import ParseDict

from shipline.backends.base import Arrays
from shipline.serve import description
from shipline.serve.errors import RequestError, bad
from shipline.serve.grpc.codes import abort, code_of
from shipline.serve.grpc.infer import InferRequest, ModelInferRequest, infer_response, parse_infer
from shipline.serve.grpc.messages import SERVICE, message, method, parsed
from shipline.serve.http.endpoints import CANCELLED, OFF_LOOP_BYTES, off_loop
from shipline.serve.jobs import Terms
from shipline.serve.model import ServedModel
from shipline.serve.parameters import HARMLESS
from shipline.serve.tensors import short

if TYPE_CHECKING:
    from shipline.serve.http.app import Application

logger = logging.getLogger(__name__)

# Requests of one stream that are in work at a time.
STREAM_WINDOW = 8

ModelStreamInferResponse = message("ModelStreamInferResponse")

Call = Callable[[Any], Awaitable[dict[str, Any]]]
Written = Callable[[ServedModel, InferRequest, Arrays], bytes]


class Service:
    """Answers the calls of one server, for the application that has the models."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._repository = app.repository
        self._readers: set[asyncio.Task[None]] = set()

    def handlers(self) -> Any:
        """Return what a server of gRPC asks for the handler of a method.

        Messages come and go as bytes: large ones are parsed and written in a thread, which gRPC would do on the loop.
        """
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(_answering(name, call)) for name, call in calls.items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def stop(self) -> None:
        """Read no more from streams: they end when what was read is answered."""
        for reader in self._readers:
            reader.cancel()

    async def _server_live(self, request: Any) -> dict[str, Any]:
        return {"live": await self._app.alive()}

    async def _server_ready(self, request: Any) -> dict[str, Any]:
        return {"ready": self._app.ready}

    async def _server_metadata(self, request: Any) -> dict[str, Any]:
        return description.server_metadata()

    async def _model_ready(self, request: Any) -> dict[str, Any]:
        """Tell whether the model takes traffic; one that is not here does not, which is no error."""
        try:
            model = self._get(request)
        except RequestError:
            return {"ready": False}
        return {"ready": model.available and not self._app.stopping}

    async def _model_metadata(self, request: Any) -> dict[str, Any]:
        return description.model_metadata(self._get(request))

    async def _model_config(self, request: Any) -> dict[str, Any]:
        return {"config": description.model_config(self._get(request))}

    async def _model_statistics(self, request: Any) -> dict[str, Any]:
        models = [self._get(request)] if request.name else self._repository.models()
        return description.model_statistics(models, self._app.metrics)

    async def _repository_index(self, request: Any) -> dict[str, Any]:
        return {"models": description.repository_index(self._repository, ready=request.ready)}

    async def _load(self, request: Any) -> dict[str, Any]:
        _check_harmless(request)
        await self._app.operator.load(request.model_name)
        return {}

    async def _unload(self, request: Any) -> dict[str, Any]:
        _check_harmless(request)
        await self._app.operator.unload(request.model_name)
        return {}

    def _get(self, request: Any) -> ServedModel:
        return self._repository.get(request.name, request.version or None)

    async def _infer(self, data: bytes, context: Any) -> bytes:
        try:
            request = await off_loop(len(data), OFF_LOOP_BYTES, parsed, ModelInferRequest, data)
            return await self._answer(request, len(data), context, _unary_bytes)
        except RequestError as error:
            failure = error
        return await abort(context, failure)

    async def _answer(self, request: Any, size: int, context: Any, written: Written) -> bytes:
        """Return what `written` makes of the outputs for a ModelInferRequest, which came as `size` bytes."""
        model = self._repository.get(request.model_name, request.model_version or None)
        status, identity, began = CANCELLED, "", time.perf_counter()
        tracing, method = model.tracing, "ModelInfer" if written is _unary_bytes else "ModelStreamInfer"
        trace = None if tracing is None else tracing.grpc(f"{SERVICE}/{method}", context.invocation_metadata())
        model.enter()
        try:
            asked = await off_loop(size, OFF_LOOP_BYTES, parse_infer, request, model.manifest.signature)
            terms = Terms(asked.priority, context.peer(), asked.timeout_s, trace)
            outputs = await model.infer(asked.inputs, asked.rows, terms)
            size = sum(array.nbytes for array in outputs.values())
            answer: bytes = await off_loop(size, OFF_LOOP_BYTES, written, model, asked, outputs)
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except Exception as error:
            failure = _failure(error, f"Model {model.name!r}", "The model failed on this input.")
            status, identity = failure.status, failure.headers["x-request-id"]
            raise failure from error
        finally:
            model.leave()
            model.metrics.answered("grpc", status, time.perf_counter() - began)
            if trace is not None:
                trace.end(status, code_of(status).name, identity)
        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Answer in the order of the requests; some of them are in work at the same time."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_WINDOW)
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                try:
                    await room.acquire()
                    async for data in requests:
                        answers.put_nowait(group.create_task(self._streamed(data, context)))
                        await room.acquire()
                finally:
                    answers.put_nowait(None)

            reader = group.create_task(read())
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            while (answer := await answers.get()) is not None:
                await context.write(await answer)
                room.release()
        if self._app.stopping:
            await abort(context, RequestError(503, "The server is stopping."))

    async def _streamed(self, data: bytes, context: Any) -> bytes:
        """Return the stream's response to one request: what is wrong with it is told there, and the stream goes on."""
        identity = ""
        try:
            request = await off_loop(len(data), OFF_LOOP_BYTES, parsed, ModelInferRequest, data)
            identity = request.id
            return await self._answer(request, len(data), context, _stream_bytes)
        except RequestError as error:
            answer = ModelStreamInferResponse(error_message=error.message)
            answer.infer_response.id = identity
            return bytes(answer.SerializeToString())


def _unary_bytes(model: ServedModel, asked: InferRequest, outputs: Arrays) -> bytes:
    response = infer_response(model.name, model.version, asked, outputs, model.manifest.signature)
    return bytes(response.SerializeToString())


def _stream_bytes(model: ServedModel, asked: InferRequest, outputs: Arrays) -> bytes:
    response = infer_response(model.name, model.version, asked, outputs, model.manifest.signature)
    response.parameters["triton_final_response"].bool_param = True  # each request has one
    return bytes(ModelStreamInferResponse(infer_response=response).SerializeToString())


def _answering(name: str, call: Call) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Return the handler of a method that takes and gives small messages."""
    takes, gives = method(name)

    async def handler(data: bytes, context: Any) -> bytes:
        try:
            found = await call(parsed(takes, data))
            return bytes(ParseDict(found, gives(), ignore_unknown_fields=True).SerializeToString())
        except RequestError as error:
            failure = error
        except Exception as error:
            failure = _failure(error, name, "The server failed on this request.")
        return await abort(context, failure)

    return handler


def _failure(error: Exception, who: str, message: str) -> RequestError:
    """Log the exception, and return what the client is told of it: where to look, no more."""
    identity = uuid.uuid4().hex
    logger.error("%s failed on request %s", who, identity, exc_info=error)
    return RequestError(500, message, {"x-request-id": identity})


def _check_harmless(request: Any) -> None:
    for name in request.parameters.keys() - HARMLESS:
        raise bad(f"{short(name)} cannot be set here.")
