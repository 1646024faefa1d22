"""Raw inputs as people name them on a command line: files, directories of pictures, files of rows, values."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipline.client.requests import PICTURES
from shipline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Input:
    """A raw input, as a client's `predict` takes it, and what to call it."""

    name: str
    raw: Any


def inputs_of(given: str) -> list[Input]:
    """Return the inputs behind one argument.

    Raises:
        ConfigError: it is neither a file nor a JSON value, a directory without pictures, or a damaged file of rows.
    """
    path = Path(given)
    if given and _is(path.is_dir):
        return _pictures(given, path)
    if _is(path.is_file):
        return list(_rows(given, path.read_bytes())) if path.suffix == ".jsonl" else [Input(given, path)]
    try:
        return [Input(given, json.loads(given))]
    except ValueError:
        raise ConfigError(f"{given!r:.200} is neither a file nor a JSON value. Check the path.") from None


def inputs_in(data: bytes) -> list[Input]:
    """Return the inputs in what came over a pipe: a JSON value, one on each line, or the bytes of a file."""
    with contextlib.suppress(ValueError):
        return [Input("-", json.loads(data))]
    with contextlib.suppress(ConfigError):
        return list(_rows("-", data))
    return [Input("-", data)]


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a JSON value may be longer than a path can be
        return False


def _pictures(given: str, directory: Path) -> list[Input]:
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not paths:
        raise ConfigError(f"{given!r} is a directory without pictures ({', '.join(PICTURES)}). Name files.")
    return [Input(str(path), path) for path in paths]


def _rows(name: str, data: bytes) -> Iterator[Input]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield Input(f"{name}:{number}", json.loads(line))
            except ValueError as error:
                raise ConfigError(f"Line {number} of {name!r} is no JSON value: {error}.") from None
