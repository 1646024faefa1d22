"""The rows that are asked: where they come from, and whether an answer is the right one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shipline.client import requests
from shipline.client.inputs import inputs_of
from shipline.client.requests import Request
from shipline.errors import ConfigError, ServingError
from shipline.loadtest.http import Answer

# An answer's last bits depend on the batch that it was computed in: so many forms of a right one are remembered.
_FORMS = 64


class Row:
    """A request as bytes, and the answer that it had when it was asked alone."""

    def __init__(self, message: bytes, request: Request[Any], alone: Answer, url: str, tolerance: float) -> None:
        self.message = message
        self._read = request.read
        self._expected = requests.answer(request, alone.reply(), url)
        self._tolerance = tolerance
        self._right = {alone.body}

    def is_right(self, answer: Answer) -> bool:
        """Whether the answer is the one that came alone, within the tolerance."""
        if answer.body in self._right:
            return True
        try:
            right = same(self._expected, self._read(answer.reply()), self._tolerance)
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        if right and len(self._right) < _FORMS:
            self._right.add(answer.body)
        return right


def same(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two answers are the same: in all but numbers, which may differ by the tolerance, and the version."""
    if isinstance(expected, np.ndarray):
        return _same_arrays(expected, found, tolerance)
    if isinstance(expected, Mapping):
        mine, other = (
            {key: value for key, value in each.items() if key not in ("model_version", "id")}
            for each in (expected, found)
        )
        return mine.keys() == other.keys() and all(same(mine[key], other[key], tolerance) for key in mine)
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found, [tolerance] * len(found)))
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        return bool(np.isclose(found, expected, rtol=tolerance, atol=tolerance))
    return bool(expected == found)


def requests_of(path: str, model: str, version: str | None) -> list[Request[Any]]:
    """Return a request for each row of a file: tensors of an .npz, else raw inputs as `shipline predict` takes them.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    if Path(path).suffix == ".npz":
        arrays = _arrays(path)
        rows = min(map(len, arrays.values()))
        return [
            requests.infer(model, {name: array[row : row + 1] for name, array in arrays.items()}, version, binary=True)
            for row in range(rows)
        ]
    return [requests.predict(model, each.raw, version) for each in inputs_of(path)]


def example(openapi: Mapping[str, Any], model: str, version: str | None) -> Request[Any]:
    """Return the request for the row that a server publishes as its example.

    Raises:
        ServingError: it publishes none.
    """

    def published(path: str) -> Any:
        return openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]

    return _first(
        [
            lambda: requests.predict(model, published(f"/models/{model}/predict"), version),
            lambda: requests.infer(
                model,
                requests.tensors_of(published(f"/v2/models/{model}/infer")["inputs"]),
                version,
                binary=True,
            ),
        ],
        model,
    )


def _first(ways: list[Callable[[], Request[Any]]], model: str) -> Request[Any]:
    for way in ways:
        try:
            return way()
        except (LookupError, TypeError):
            continue
    raise ServingError(f"The server publishes no example for {model!r}. Check the name, or give rows: --rows FILE.")


def _same_arrays(expected: np.ndarray, found: Any, tolerance: float) -> bool:
    if not isinstance(found, np.ndarray) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return False
    if expected.dtype.kind != "f":
        return bool((expected == found).all())
    return bool(np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True))


def _arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays in an .npz file, each with a row along its first dimension; nothing is unpickled."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"Cannot read the rows in {path!r}: {error}.") from None
    sizes = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or sizes.popitem()[1] in ((), (0,)):
        raise ConfigError(f"The arrays in {path!r} must have the same number of rows, at least one.")
    return arrays
