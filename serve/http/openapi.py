"""The OpenAPI document: FastAPI's routes, and the prediction endpoints of each loaded model with examples that work."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from fastapi.openapi.utils import get_openapi

from shipline.backends.base import Arrays
from shipline.serve.http.infer import predict_response
from shipline.signature import TensorSpec

if TYPE_CHECKING:
    from fastapi import FastAPI

    from shipline.serve.model import ServedModel

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}, "id": {"type": "string"}}}
_STATUSES = {
    "400": "The input is malformed, or does not match the model's signature",
    "413": "The body is too large",
    "415": "The body's media type or encoding is not taken",
    "500": "The model failed on this input",
    "503": "Not ready, or too many requests are waiting",
}


def describe(app: FastAPI, models: Sequence[ServedModel]) -> dict[str, Any]:
    """Return the document."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        operation["responses"].pop("422", None)  # FastAPI's own, which is never sent: what is malformed gets 400
    for model in models:
        document["paths"][f"/v2/models/{model.name}/infer"] = {"post": _infer(model)}
        document["paths"][f"/v1/models/{model.name}:predict"] = {"post": _instances(model)}
        if model.processing is not None:
            document["paths"][f"/models/{model.name}/predict"] = {"post": _predict(model)}
    # Examples hold bytes and NaN, which are no JSON, and stand in it as they do in answers.
    written: dict[str, Any] = orjson.loads(orjson.dumps(document, default=_text))
    return written


def _infer(model: ServedModel) -> dict[str, Any]:
    signature, example = model.manifest.signature, model.example
    request = {"inputs": _tensors(signature.inputs, example.inputs)}
    response: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if example.outputs:  # a model that nobody has proved has none
        response["outputs"] = _tensors(signature.outputs, example.outputs)
    return _operation(
        f"Infer with {model.name}: tensors in, tensors out",
        {"application/json": {"schema": {"type": "object"}, "example": request}},
        response,
    )


def _predict(model: ServedModel) -> dict[str, Any]:
    assert model.processing is not None
    schema = model.processing.takes
    if model.processing.takes_bytes:
        content: dict[str, Any] = {"image/*": {"schema": schema}}
    else:
        content = {"application/json": {"schema": schema, "example": model.example.raw}}
    answer = predict_response(model.name, model.version, model.example.answer)
    return _operation(f"Predict with {model.name}: the raw thing in, the answer out", content, answer)


def _instances(model: ServedModel) -> dict[str, Any]:
    example = model.example
    if model.processing is None:
        instance, answers = _one_row(example.inputs), [_one_row(example.outputs)] if example.outputs else []
    elif model.processing.takes_bytes:
        instance, answers = {"b64": base64.b64encode(example.raw).decode()}, [example.answer]
    else:
        instance, answers = example.raw, [example.answer]
    return _operation(
        f"Predict with {model.name}, as KServe's first protocol has it: instances in, predictions out",
        {"application/json": {"schema": {"type": "object"}, "example": {"instances": [instance]}}},
        {"predictions": answers},
    )


def _one_row(arrays: Arrays) -> Any:
    """The first row of the only array, or of each by name."""
    rows = {name: array[0].tolist() for name, array in arrays.items()}
    return next(iter(rows.values())) if len(rows) == 1 else rows


def _operation(summary: str, content: dict[str, Any], answer: Any) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _STATUSES.items()
    }
    good = {
        "description": "The answer",
        "content": {"application/json": {"schema": {"type": "object"}, "example": answer}},
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": good, **errors},
    }


def _tensors(specs: Sequence[TensorSpec], arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "shape": list(arrays[spec.name].shape),
            "datatype": spec.datatype,
            "data": arrays[spec.name].ravel().tolist(),
        }
        for spec in specs
    ]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
