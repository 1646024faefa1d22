"""The FastAPI application; predictions go past its router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import shipline
from shipline.errors import ShiplineError, StoreError
from shipline.serve.errors import RequestError
from shipline.serve.hosting import Hosting
from shipline.serve.http.adapters import InvocationsEndpoint, V1Endpoint
from shipline.serve.http.body import Receive, Scope, Send
from shipline.serve.http.endpoints import Endpoint, InferEndpoint, error_answer, request_id
from shipline.serve.http.openapi import describe
from shipline.serve.http.predict import PredictEndpoint
from shipline.serve.http.routes import add_routes
from shipline.serve.model import ServedModel
from shipline.serve.repository import Repository

if TYPE_CHECKING:
    from shipline.serve.worker import Colleague

logger = logging.getLogger(__name__)

RETRY_S, MAX_RETRY_S = 1.0, 30.0


class Operator(Protocol):
    """Who loads and unloads models when asked to; RequestError where that cannot be."""

    async def load(self, name: str) -> None:
        """Load the version that is stable now."""

    async def unload(self, name: str) -> None:
        """Unload the model."""


class Application(FastAPI):
    """A FastAPI application whose prediction endpoints are found by one look into a dict, before any middleware."""

    def __init__(self, url: str, on_failure: Callable[[ShiplineError], None], hosting: Hosting | None = None) -> None:
        super().__init__(
            title="Shipline",
            version=shipline.__version__,
            lifespan=_lifespan,
            redirect_slashes=False,
            exception_handlers={
                RequestError: _request_error,
                HTTPException: _http_error,
                RequestValidationError: _validation_error,
                Exception: _unexpected,
            },
        )
        self.hosting = hosting or Hosting()
        self.metrics = self.hosting.metrics
        self.repository = Repository(url, self.hosting, self._add, self._remove)
        self._endpoints: dict[str, Endpoint] = {"/invocations": InvocationsEndpoint(self.repository)}
        self._direct: dict[bytes, InferEndpoint] = {}
        self._described: dict[str, Any] | None = None
        self.on_failure = on_failure
        self.stopping = False
        self.operator: Operator = self.repository
        self.colleague: Colleague | None = None
        self.others_ready = True
        self.may_listen = asyncio.Event()
        self.may_listen.set()
        self.others: asyncio.Task[None] | None = None  # who else uses the models: awaited before these are given back
        add_routes(self)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Answer predictions here, everything else with FastAPI."""
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        return super().__call__(scope, receive, send) if endpoint is None else endpoint(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with the prediction endpoints of the models that are loaded now."""
        if self._described is None:
            self._described = describe(self, self.repository.models())
        return self._described

    @property
    def predictions(self) -> Mapping[str, Endpoint]:
        """The paths that are answered before any router."""
        return self._endpoints

    @property
    def direct(self) -> Mapping[bytes, InferEndpoint]:
        """The paths, as they are sent, of the endpoints for tensors."""
        return self._direct

    @property
    def ready(self) -> bool:
        """Whether every model takes traffic, and the server is not stopping."""
        return self.repository.complete and self.others_ready and not self.stopping

    async def alive(self) -> bool:
        """Return whether every model still computes: where one does not, only a new process helps."""
        models = self.repository.models()
        found = await asyncio.gather(*(model.alive() for model in models))
        stuck = [model for model, alive in zip(models, found, strict=True) if not alive]
        stuck = [model for model in stuck if model in self.repository.models()]  # not unloaded meanwhile
        for model in stuck:
            logger.error("%s version %s computes no more: the server is not alive", model.name, model.version)
        return not stuck

    def join(self, colleague: Colleague) -> None:
        """Be one of several processes: ready when all are, and loading and unloading what all do."""
        self.operator = self.colleague = colleague
        self.others_ready = False
        if not colleague.listens_at_once:
            self.may_listen.clear()

    def _add(self, model: ServedModel) -> None:
        self._remove(model)
        infer, predict = InferEndpoint(model), PredictEndpoint(model)
        for version in ("", f"/versions/{model.version}"):
            self._endpoints[path := f"/v2/models/{model.name}{version}/infer"] = infer
            self._direct[path.encode()] = infer
            self._endpoints[f"/models/{model.name}{version}/predict"] = predict
        self._endpoints[f"/v1/models/{model.name}:predict"] = V1Endpoint(model)

    def _remove(self, model: ServedModel) -> None:
        """Forget every endpoint of the model's name, of whatever version."""
        self._described = None
        ways = (f"/v2/models/{model.name}/", f"/models/{model.name}/", f"/v1/models/{model.name}:")
        self._endpoints = {path: found for path, found in self._endpoints.items() if not path.startswith(ways)}
        self._direct = {path: found for path, found in self._direct.items() if path.decode() in self._endpoints}


@asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    """Load in the background: the server is alive at once, and ready when every model has proved itself."""
    tasks = [asyncio.create_task(_load(app))]
    if app.colleague is not None:
        tasks.append(asyncio.create_task(app.colleague.work()))
    yield
    for task in tasks:
        task.cancel()
    if app.others is not None:
        await app.others
    app.repository.close()
    if app.hosting.tracing is not None:
        await asyncio.to_thread(app.hosting.tracing.close)


async def _load(app: Application) -> None:
    """Load everything; again and again while the storage cannot be reached, which may be over by itself."""
    wait_s = RETRY_S
    try:
        while True:
            try:
                if app.colleague is None:
                    await app.repository.load_all()
                else:
                    await app.repository.load_all(app.colleague.unloaded, app.colleague.pinned)
            except StoreError as error:
                if type(error) is not StoreError:  # nothing is there, or not for us
                    raise
                logger.warning("%s Trying again in %g s.", error, wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_RETRY_S)
            else:
                break
    except ShiplineError as error:
        app.on_failure(error)
    except Exception as error:
        logger.exception("Loading failed")
        app.on_failure(ShiplineError(f"Loading failed: {type(error).__name__}: {error}"))
    finally:
        app.may_listen.set()


def _answer(request: Request, error: RequestError) -> Response:
    body, headers = error_answer(error, request_id(dict(request.scope["headers"])))
    response = Response(body, error.status)
    response.raw_headers.extend(headers)
    return response


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _answer(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, RequestError(error.status_code, error.detail, dict(error.headers or {})))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _answer(request, RequestError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("Unexpected error", exc_info=error)
    return _answer(request, RequestError(500, "The server failed on this request."))
