"""`shipline load-test`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shipline.commands.console import console
from shipline.commands.predict import read_key
from shipline.config import new_parser, parse
from shipline.errors import ConfigError, ServingError
from shipline.loadtest import show
from shipline.loadtest.engine import LoadTest
from shipline.loadtest.results import RIGHT, WRONG, Result

LATE_MS = 10.0
# An open loop must not be held up for want of connections: the server is to feel the whole rate.
OPEN_CONNECTIONS, CLOSED_CONNECTIONS = 512, 32


def run(arguments: Sequence[str]) -> None:
    """Load a server, check its answers, print what came of it.

    Raises:
        ServingError: an answer was wrong, or none was right.
    """
    settings = parse(_parser(), arguments)
    if settings.plot is not None:
        importlib.import_module("matplotlib")  # said before the load rather than behind it
    rates = _rates(settings.rate)
    default = OPEN_CONNECTIONS if rates else CLOSED_CONNECTIONS
    test = LoadTest(
        url=settings.url,
        model=settings.model,
        version=settings.version,
        rows=settings.rows,
        rates=rates,
        connections=default if settings.connections is None else settings.connections,
        seconds=settings.seconds,
        timeout=settings.timeout,
        tolerance=settings.tolerance,
        api_key=read_key(settings.api_key_file),
    )
    results = test.run(lambda result: console.print(show.histogram(result), "\n", highlight=False))
    console.print(show.table(results))
    _write(settings, results)
    _judge(results)


def _parser() -> Any:
    parser = new_parser(
        "load-test",
        "Load a server and check every answer. Closed loop: each connection asks again when it is answered. "
        "Open loop (--rate): requests come when it is time, and latencies count from then on.",
    )
    parser.add_argument("url", type=str, help="Of the server, such as http://127.0.0.1:8000.")
    parser.add_argument("model", type=str, help="Name of the model.")
    parser.add_argument("--version", type=str | None, default=None, help="A certain version of the model.")
    parser.add_argument(
        "--connections",
        type=int | None,
        default=None,
        help=f"At most; default: {CLOSED_CONNECTIONS}, in an open loop {OPEN_CONNECTIONS}.",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="For each loop.")
    parser.add_argument("--rate", type=str | None, default=None, help="Requests a second, such as 500 or 100,200,400.")
    parser.add_argument(
        "--rows",
        type=str | None,
        default=None,
        help="Rows to ask in turn: .npz with tensors, or what `shipline predict` takes. Default: the server's example.",
    )
    parser.add_argument("--timeout", type=float, default=10.0, help="Seconds until a request is given up.")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="Of numbers, against the same row asked alone before."
    )
    parser.add_argument("--api-key-file", type=str | None, default=None, help="A file with the key that is sent.")
    parser.add_argument("--plot", type=str | None, default=None, help="A file for a plot, such as latency.svg.")
    parser.add_argument("--json", type=str | None, default=None, help="A file for the figures.")
    return parser


def _rates(given: str | None) -> tuple[float, ...]:
    try:
        return tuple(map(float, given.split(","))) if given is not None else ()
    except ValueError:
        raise ConfigError(f"--rate is {given!r}; give requests a second, such as 500 or 100,200,400.") from None


def _write(settings: Any, results: Sequence[Result]) -> None:
    try:
        if settings.json is not None:
            document = {"model": settings.model, "loads": [result.as_json() for result in results]}
            Path(settings.json).write_text(json.dumps(document, indent=2) + "\n")
        if settings.plot is not None:
            show.plot(results, settings.plot)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot write the results: {error}. Check --json and --plot.") from error


def _judge(results: Sequence[Result]) -> None:
    late = max(result.generator_late_ms for result in results)
    if late > LATE_MS:
        console.print(f"The generator itself was {late:.1f} ms late (p99): ask from a machine with time to spare.")
    wrong, sent = sum(result.counts[WRONG] for result in results), sum(result.sent for result in results)
    if wrong:
        raise ServingError(f"{wrong} of {sent} answers were not those of the same rows asked alone.")
    if not any(result.counts[RIGHT] for result in results):
        raise ServingError(f"None of {sent} requests was answered rightly.")
