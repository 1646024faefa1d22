"""The routes that FastAPI answers: health, metadata, metrics, and the model repository."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from shipline.serve import description
from shipline.serve.errors import RequestError, bad, overloaded
from shipline.serve.http.document import parse_json
from shipline.serve.metrics import CONTENT_TYPE
from shipline.serve.parameters import HARMLESS
from shipline.serve.repository import no_such_model

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
MAX_ADMIN_BYTES = 64 << 10


def add_routes(app: FastAPI) -> None:
    """Add them all."""
    get, post = app.get, app.post
    get("/v2", summary="Server metadata")(_server_metadata)
    get("/v2/", include_in_schema=False)(_server_metadata)
    get("/v2/health/live", summary="Whether the server is alive: every model still computes")(_live)
    get("/v2/health/ready", summary="Whether every model takes traffic")(_ready)
    get("/ping", summary="Whether every model takes traffic, as SageMaker asks")(_ready)
    get("/metrics", summary="Metrics for Prometheus")(_metrics)
    get("/v2/models/stats", summary="Statistics of every model")(_all_statistics)
    for path in MODEL_PATHS:
        get(path, summary="Model metadata: signature, lineage, verdicts")(_model_metadata)
        get(f"{path}/ready", summary="Whether the model takes traffic")(_model_ready)
        get(f"{path}/config", summary="Model configuration")(_model_config)
        get(f"{path}/stats", summary="Model statistics")(_model_statistics)
        post(f"{path}/infer", include_in_schema=False)(_no_such_model)
    for path in ("/models/{name}/predict", "/models/{name}/versions/{version}/predict"):
        post(path, include_in_schema=False)(_no_such_model)
    get("/v1/models", summary="Names of the models that take traffic, as KServe's first protocol asks")(_v1_models)
    get("/v1/models/{name}", summary="Whether the model takes traffic, as KServe's first protocol asks")(_v1_ready)
    post("/v1/models/{action}", include_in_schema=False)(_no_such_action)
    post("/v2/repository/index", summary="State of every model")(_index)
    post("/v2/repository/models/{name}/load", summary="Load the version that is stable now")(_load)
    post("/v2/repository/models/{name}/unload", summary="Unload a model")(_unload)


async def _server_metadata() -> dict[str, Any]:
    return description.server_metadata()


async def _live(request: Request) -> Response:
    alive = await request.app.alive()
    return JSONResponse({"live": alive}, 200 if alive else 503)


async def _ready(request: Request) -> Response:
    ready = request.app.ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.metrics.exposition(), media_type=CONTENT_TYPE)


async def _model_metadata(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    return description.model_metadata(request.app.repository.get(name, version))


async def _model_ready(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    model = request.app.repository.get(name, version)
    if request.app.stopping:
        raise RequestError(503, "The server is stopping.")
    if not model.available:
        raise overloaded("The model has failed too often. Try again in a minute.")
    return {"name": model.name, "ready": True}


async def _model_config(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    return description.model_config(request.app.repository.get(name, version))


async def _model_statistics(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    return description.model_statistics([request.app.repository.get(name, version)], request.app.metrics)


async def _all_statistics(request: Request) -> dict[str, Any]:
    return description.model_statistics(request.app.repository.models(), request.app.metrics)


async def _v1_models(request: Request) -> dict[str, Any]:
    return {"models": [model.name for model in request.app.repository.models()]}


async def _v1_ready(request: Request, name: str) -> dict[str, Any]:
    return await _model_ready(request, name)


async def _no_such_model(request: Request, name: str, version: str | None = None) -> None:
    """Reached only where the path of no loaded model matched."""
    request.app.repository.get(name, version)
    raise RequestError(404, "There is no such model or version here.")


async def _no_such_action(request: Request, action: str) -> None:
    """Reached only where the path of no loaded model matched."""
    name, _, verb = action.partition(":")
    if verb == "predict":
        request.app.repository.get(name)
    raise no_such_model()


async def _index(request: Request) -> list[dict[str, str]]:
    asked = await _asked(request, {"ready"})
    ready = asked.get("ready", False)
    if type(ready) is not bool:
        raise bad("'ready' must be true or false.")
    return description.repository_index(request.app.repository, ready=ready)


async def _load(request: Request, name: str) -> Response:
    await _asked(request, {"parameters"})
    await request.app.operator.load(name)
    return Response()


async def _unload(request: Request, name: str) -> Response:
    await _asked(request, {"parameters"})
    await request.app.operator.unload(name)
    return Response()


async def _asked(request: Request, known: set[str]) -> dict[str, Any]:
    """Return the small JSON object in the body, empty where there is none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_ADMIN_BYTES:
            raise RequestError(413, f"The body is larger than {MAX_ADMIN_BYTES} bytes.", {"connection": "close"})
    asked = parse_json(body) if body.strip() else {}
    parameters = asked.get("parameters") if type(asked) is dict else None
    if type(asked) is not dict or type(parameters) not in (dict, type(None)):
        raise bad("The body, and 'parameters' in it, must be JSON objects.")
    for field in (asked.keys() - known) | ((parameters or {}).keys() - HARMLESS):
        raise bad(f"{re.sub('[^a-zA-Z0-9_:./-]', '?', field)[:80]!r} cannot be set here.")
    return asked
