"""What the package logs, on standard error. The package itself gives its logger no handler but an empty one.

A line for people, an error's own lines set in below it; or with SHIPLINE_LOG_FORMAT=json an object for machines: time,
level, logger, message, and the error.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from textwrap import indent
from typing import Any

from shipline.commands.console import printable
from shipline.errors import ConfigError, nearest
from shipline.store import redact

LEVELS = ("debug", "info", "warning", "error", "critical")
_OPTIONS = ("--log-level", "--log_level")
_VARIABLE = "SHIPLINE_LOG_LEVEL"
_FORMATS = ("text", "json")
_FORMAT_VARIABLE = "SHIPLINE_LOG_FORMAT"
_WAITING_LINES, _END_S = 1000, 1.0


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


@contextmanager
def logging_aside(on_drop: Callable[[], object]) -> Iterator[None]:
    """Write the lines of the block in a thread, so that nobody waits for who reads them.

    Args:
        on_drop: called for each line that is dropped: the reader is gone or too slow, or the disk is full.
    """
    package = logging.getLogger("shipline")
    before = list(package.handlers)
    asides = {handler: _Aside(handler, on_drop) for handler in before if isinstance(handler, _Terminal)}
    package.handlers[:] = [asides[one] if isinstance(one, _Terminal) else one for one in before]
    try:
        yield
    finally:
        package.handlers[:] = before
        for aside in asides.values():
            aside.end()


class _Aside(logging.Handler):
    """Hands what a terminal would show to a thread that writes it."""

    def __init__(self, terminal: _Terminal, on_drop: Callable[[], object]) -> None:
        super().__init__()
        self._terminal, self._on_drop = terminal, on_drop
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
        self._thread = threading.Thread(target=self._write, name="shipline-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Let a line wait, if there is room."""
        try:
            self._lines.put_nowait(self._terminal.format(record))
        except queue.Full:
            self._on_drop()

    def end(self) -> None:
        """Write what waits, for a second at most."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_END_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._terminal.stream.write(f"{line}\n")
                self._terminal.stream.flush()
            except (OSError, ValueError):  # nobody reads, there is no room, or it is closed
                self._on_drop()


class _Line(logging.Formatter):
    """Text from elsewhere moves no cursor, begins no line of its own, and shows no credentials.

    Below a record stand an error's lines alone, and they are set in.
    """

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's own name
        return super().formatMessage(record).replace("\n", "\\n")

    def formatException(self, *error: Any) -> str:  # noqa: N802 -- logging's own name
        return indent(super().formatException(*error), "  ")


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
