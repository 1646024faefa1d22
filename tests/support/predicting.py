"""A double of a server that publishes an example of what to ask, for who calls it under load."""

from __future__ import annotations

import json
from collections.abc import Callable

from web_double import Asked, Say

GOOD = b'{"model_version": "1", "label": "7", "score": 0.5}'
OPENAPI = {
    "paths": {"/models/m/predict": {"post": {"requestBody": {"content": {"application/json": {"example": {"a": 1}}}}}}}
}


def predicting(answer: Callable[[Asked], Say]) -> Callable[[Asked], Say]:
    """A server double with an example for the model `m`."""
    document = json.dumps(OPENAPI).encode()
    return lambda asked: (200, {}, document) if asked.path == "/openapi.json" else answer(asked)
