"""`shipline predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from shipline.client import Client
from shipline.client.inputs import Input, inputs_in, inputs_of
from shipline.commands.console import printable
from shipline.config import new_parser, parse
from shipline.errors import ConfigError, ServingError, ShiplineError

# So many are asked before their answers are written: enough to keep the connections busy, little to lose.
_TOGETHER = 256


def run(arguments: Sequence[str]) -> None:
    """Ask a server and print the answers in order: label and score, or JSON.

    Raises:
        ServingError: an input failed; the others were answered.
    """
    parser = new_parser("predict", "Ask a server for the answers to files, or to JSON values.")
    parser.add_argument("url", type=str, help="Of the server, such as http://127.0.0.1:8000.")
    parser.add_argument("model", type=str, help="Name of the model.")
    parser.add_argument(
        "input",
        type=str,
        nargs="+",
        help="Files (pictures, .json, .jsonl with a row on each line), directories of pictures, JSON values, "
        "or - for standard input.",
    )
    parser.add_argument("--version", type=str | None, default=None, help="A certain version of the model.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="A .jsonl file for the answers, one on each line, in order."
    )
    parser.add_argument("--api-key-file", type=str | None, default=None, help="A file with the key that is sent.")
    parser.add_argument("--timeout", type=float, default=30.0, help="Seconds for each input, with what is repeated.")
    settings = parse(parser, arguments)
    inputs = [each for given in settings.input for each in _inputs(given)]
    with Client(settings.url, timeout=settings.timeout, api_key=read_key(settings.api_key_file)) as client:
        answers = _answers(client, settings.model, inputs, settings.version)
        if settings.output is None and len(inputs) == 1:
            print(printable(_shown(_or_raise(next(answers)))))  # noqa: T201
        else:
            _write_all(inputs, answers, settings.output)


def read_key(path: str | None) -> str | None:
    """Return the key in a file; ConfigError where it cannot be read."""
    try:
        return None if path is None else Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"Cannot read the key in {path!r}: {reason}. Check --api-key-file.") from None


def _inputs(given: str) -> list[Input]:
    return inputs_in(sys.stdin.buffer.read()) if given == "-" else inputs_of(given)


def _answers(client: Client, model: str, inputs: list[Input], version: str | None) -> Iterator[Any]:
    for start in range(0, len(inputs), _TOGETHER):
        raws = [each.raw for each in inputs[start : start + _TOGETHER]]
        yield from client.predict_many(model, raws, version=version, return_errors=True)


def _or_raise(answer: Any) -> dict[str, Any]:
    if isinstance(answer, ShiplineError):
        raise answer
    found: dict[str, Any] = answer
    return found


def _write_all(inputs: list[Input], answers: Iterator[Any], output: str | None) -> None:
    """Write an answer, or an error, for each input; raise at the end where some failed."""
    failed = 0
    with _opened(output) as file:
        for asked, answer in zip(inputs, answers, strict=True):
            failed += isinstance(answer, ShiplineError)
            print(_record(asked, answer) if output else printable(_line(asked, answer)), file=file)
    if failed:
        raise ServingError(f"{failed} of {len(inputs)} inputs failed; the others were answered.")


def _opened(output: str | None) -> Any:
    if output is None:
        return nullcontext[TextIO](sys.stdout)
    try:
        return Path(output).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {output!r}: {error.strerror}. Check --output.") from None


def _record(asked: Input, answer: Any) -> str:
    fields = {"error": str(answer)} if isinstance(answer, ShiplineError) else answer
    return json.dumps({"input": asked.name, **fields})


def _line(asked: Input, answer: Any) -> str:
    return f"{asked.name}: {f'failed: {answer}' if isinstance(answer, ShiplineError) else _shown(answer)}"


def _shown(answer: dict[str, Any]) -> str:
    if "label" in answer and isinstance(answer.get("score"), int | float):  # null where the model gave NaN
        return f"{answer['label']}  {answer['score']:.3f}"
    return json.dumps({key: value for key, value in answer.items() if not key.startswith("model_")})
