"""What the package logs, on standard error. The package itself gives its logger no handler but an empty one.

A line for people, or with SHIPLINE_LOG_FORMAT=json an object for machines: time, level, logger, message, and the error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from shipline.commands.console import printable
from shipline.errors import ConfigError, nearest
from shipline.store import redact

LEVELS = ("debug", "info", "warning", "error", "critical")
_OPTIONS = ("--log-level", "--log_level")
_VARIABLE = "SHIPLINE_LOG_LEVEL"
_FORMATS = ("text", "json")
_FORMAT_VARIABLE = "SHIPLINE_LOG_FORMAT"


def log_to_terminal(arguments: Sequence[str] = ()) -> list[str]:
    """Show what the package logs, from a level on: `--log-level`, or SHIPLINE_LOG_LEVEL, or info.

    Returns:
        The arguments without that option.

    Raises:
        ConfigError: there is no such level, or no such format.
    """
    level, rest = _taken(arguments)
    form = os.environ.get(_FORMAT_VARIABLE, "text")
    if form not in _FORMATS:
        raise ConfigError(f"{_FORMAT_VARIABLE} is {form!r}. Known: {', '.join(_FORMATS)}.")
    package = logging.getLogger("shipline")
    package.setLevel(level.upper())
    if not any(isinstance(handler, _Terminal) for handler in package.handlers):
        package.addHandler(_Terminal(_Object() if form == "json" else _Line("%(asctime)s %(levelname)s %(message)s")))
    return rest


@contextmanager
def as_it_was() -> Iterator[None]:
    """Leave the package's logger as it was: a command may be run by another program."""
    package = logging.getLogger("shipline")
    level, handlers = package.level, list(package.handlers)
    try:
        yield
    finally:
        package.setLevel(level)
        package.handlers[:] = handlers


class _Terminal(logging.StreamHandler[Any]):
    """Writes to what standard error is now: a progress bar puts itself in its place, and lines go above it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(formatter)

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr


class _Line(logging.Formatter):
    """Text from elsewhere moves no cursor, and shows no credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


class _Object(logging.Formatter):
    """One line of JSON for each record, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            said["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(said)


def _taken(arguments: Sequence[str]) -> tuple[str, list[str]]:
    level, rest = os.environ.get(_VARIABLE, "info"), list(arguments)
    source = _VARIABLE
    for index, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name in _OPTIONS:
            if not equals and index + 1 == len(rest):
                raise ConfigError(f"{name} has no value. Known: {', '.join(LEVELS)}.")
            level, source = (value if equals else rest[index + 1]), name
            del rest[index : index + (1 if equals else 2)]
            break
    if level.lower() not in LEVELS:
        raise ConfigError(f"{source} is {level!r}.{nearest(level.lower(), LEVELS)} Known: {', '.join(LEVELS)}.")
    return level, rest
