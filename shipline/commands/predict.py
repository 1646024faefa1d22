"""`shipline predict`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shipline.client import Client
from shipline.commands.console import printable
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Ask a server and print the answer: label and score, or JSON."""
    parser = new_parser("predict", "Ask a server for the answer to a file, or to a JSON value.")
    parser.add_argument("url", type=str, help="Of the server, such as http://127.0.0.1:8000.")
    parser.add_argument("model", type=str, help="Name of the model.")
    parser.add_argument("input", type=str, help="A file (a picture, or .json), a JSON value, or - for standard input.")
    parser.add_argument("--version", type=str | None, default=None, help="A certain version of the model.")
    settings = parse(parser, arguments)
    with Client(settings.url) as client:
        answer = client.predict(settings.model, _raw(settings.input), version=settings.version)
    print(printable(_shown(answer)))  # noqa: T201


def _raw(given: str) -> Any:
    if given == "-":
        data = sys.stdin.buffer.read()
        with contextlib.suppress(ValueError):
            return json.loads(data)
        return data
    with contextlib.suppress(OSError):  # a JSON value may be longer than a path can be
        if Path(given).is_file():
            return Path(given)
    try:
        return json.loads(given)
    except ValueError:
        raise ConfigError(f"{given!r:.200} is neither a file nor a JSON value. Check the path.") from None


def _shown(answer: dict[str, Any]) -> str:
    if "label" in answer and isinstance(answer.get("score"), int | float):  # null where the model gave NaN
        return f"{answer['label']}  {answer['score']:.3f}"
    return json.dumps({key: value for key, value in answer.items() if not key.startswith("model_")})
