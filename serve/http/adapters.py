"""Other protocols over the same models: KServe's first (TensorFlow Serving's), and SageMaker's."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from shipline.backends.base import Arrays
from shipline.serve.errors import RequestError, bad
from shipline.serve.http.body import JSON, Receive, Scope, Send
from shipline.serve.http.document import parse_json
from shipline.serve.http.endpoints import (
    OFF_LOOP_BYTES,
    Answer,
    Headers,
    InferEndpoint,
    PredictionEndpoint,
    media_type_of,
    off_loop,
    send_error,
)  # fmt: skip
from shipline.serve.http.infer import nested_tensor
from shipline.serve.http.predict import PredictEndpoint, predict_many, raw_of
from shipline.serve.jobs import Terms
from shipline.serve.model import ServedModel
from shipline.serve.repository import Repository
from shipline.serve.tensors import common_rows, kind

TARGET = b"x-amzn-sagemaker-target-model"


class V1Endpoint(PredictionEndpoint):
    """POST v1/models/{name}:predict: {"instances": [...]} in, {"predictions": [...]} out.

    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol. An instance is a raw input where
    the model has processing, else one row of its input, or of each by name.
    """

    name = "v1"
    route = "/v1/models/{name}:predict"

    async def answer(self, body: bytes, headers: Headers, terms: Terms) -> Answer:
        """Return the predictions for the instances in the body."""
        document = await off_loop(len(body), OFF_LOOP_BYTES, parse_json, body)
        return await self.predictions(document, terms)

    async def predictions(self, document: Any, terms: Terms) -> Answer:
        """Return the predictions for the document's instances."""
        if type(document) is not dict or set(document) - {"instances", "signature_name"}:
            raise bad("The body must be a JSON object with 'instances'.")
        instances = document.get("instances")
        if type(instances) is not list or not instances:
            raise bad(f"'instances' must be a list of at least one; got {kind(instances)}.")
        if self._model.processing is not None:
            predictions = await self._answers(instances, terms)
        else:
            inputs = await off_loop(len(instances), 64, _stacked, instances, self._model)
            outputs = await self._model.infer(inputs, common_rows(inputs), terms)
            predictions = _rows(outputs)
        return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]

    async def _answers(self, instances: list[Any], terms: Terms) -> list[Any]:
        found = await predict_many(self._model, instances, raw_of, terms)
        for number, answer in enumerate(found):
            if isinstance(answer, RequestError):
                raise RequestError(answer.status, f"Instance {number}: {answer.message}")
        return found


class InvocationsEndpoint:
    """POST invocations: SageMaker's one door, to the one model of the server or the one that a header names.

    https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html. What comes is taken for what it
    looks like: tensors, instances, or a raw input.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            model = self._chosen(headers.get(TARGET))
        except RequestError as error:
            await send_error(scope, send, error)
            return
        json = media_type_of(headers) in (None, b"application/json")
        endpoint = _EitherEndpoint(model) if json else PredictEndpoint(model)
        await endpoint(scope, receive, send)

    def _chosen(self, name: bytes | None) -> ServedModel:
        if name is not None:
            return self._repository.get(name.decode("latin-1"))
        models = self._repository.models()
        if len(models) > 1:
            raise bad(f"There are {len(models)} models here: name one in the header {TARGET.decode()}.")
        return models[0] if models else self._repository.get("")


class _EitherEndpoint(PredictionEndpoint):
    """JSON in any of the forms that the others take."""

    name = "invocations"
    route = "/invocations"

    async def answer(self, body: bytes, headers: Headers, terms: Terms) -> Answer:
        document = await off_loop(len(body), OFF_LOOP_BYTES, parse_json, body)
        if type(document) is dict and type(document.get("inputs")) is list:
            return await InferEndpoint(self._model).answer(body, headers, terms)
        if type(document) is dict and set(document) == {"instances"}:
            return await V1Endpoint(self._model).predictions(document, terms)
        return await PredictEndpoint(self._model).answer(body, headers, terms)


def _stacked(instances: list[Any], model: ServedModel) -> Arrays:
    """Return the instances as the model's inputs, each with its rows one behind the other."""
    specs = model.manifest.signature.inputs
    if len(specs) == 1 and not all(type(one) is dict for one in instances):
        return {specs[0].name: nested_tensor(instances, specs[0])}
    names = {spec.name for spec in specs}
    for number, one in enumerate(instances):
        if type(one) is not dict or set(one) != names:
            raise bad(f"Instance {number} must be an object with {', '.join(sorted(names))}, and nothing else.")
    return {spec.name: nested_tensor([one[spec.name] for one in instances], spec) for spec in specs}


def _rows(outputs: Arrays) -> Any:
    """Return the outputs row by row; by name where there are several."""
    listed = {name: _values(array) for name, array in outputs.items()}
    if len(listed) == 1:
        return next(iter(listed.values()))
    return [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]


def _values(array: np.ndarray) -> Any:
    if array.dtype == np.object_:
        return np.vectorize(lambda one: one if isinstance(one, str) else one.decode(errors="replace"))(array).tolist()
    return array.tolist()
