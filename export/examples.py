"""Rows that a user gives, in whatever form, as batches of forward's inputs with their targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shipline.errors import ConfigError, ProcessingError, nearest
from shipline.processing import Processing

BATCH = 64
TARGETS = "targets"

#: Forward's inputs by parameter name, and the targets, or None where there are none.
Batch = tuple[dict[str, torch.Tensor], Any]


class Examples:
    """Rows to evaluate a module on.

    Args:
        rows: an array or a DataFrame of numbers, a mapping of such by the names of forward's parameters, a tuple of
            them (one for each parameter; then the targets, if any), a Dataset (a list is one) or a DataLoader; or, with
            processing, raw inputs (of a DataFrame, its records), or a tuple of them and of their targets.
        forward: what takes the rows.
        labelled: whether somebody asks for targets.
        processing: makes rows of raw inputs.

    Raises:
        ConfigError: it is none of these, or can be read but once.
    """

    def __init__(
        self, rows: Any, forward: Callable[..., Any], *, labelled: bool, processing: Processing | None = None
    ) -> None:
        self._parameters = _parameters(forward)
        self._labelled = labelled
        self.raw: list[Any] = []
        if processing is not None:
            self.raw, targets = _raw(rows)
            rows = _RawRows(self.raw, targets if labelled else None, processing.whole, self._parameters[0].name)
        self._loading = _loading(rows)

    def batches(self) -> Iterator[Batch]:
        """Go through all rows once, in the same order each time."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # for loaders that shuffle
            for batch in self._read():
                yield self._split(batch)

    def _read(self) -> Iterator[Any]:
        try:
            yield from self._loading()
        except (RuntimeError, TypeError) as error:  # of a loader that puts rows together
            raise ConfigError(
                f"The rows cannot be read: {str(error).strip()[:500]} All rows of an input have one shape and dtype."
            ) from error

    def _split(self, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            return self._split_names(dict(batch))
        items = batch if isinstance(batch, tuple | list) else (batch,)
        names = [parameter.name for parameter in self._parameters]
        required = sum(parameter.default is inspect.Parameter.empty for parameter in self._parameters)
        count = len(items)
        if required < count <= len(names) and not self._labelled:
            raise ConfigError(
                f"A row has {count} arrays, and forward takes {', '.join(names)}, of which it needs {required}: is the "
                "last an input, or the targets? Name them: rows={'" + names[0] + "': ...}."
            )
        given = count - 1 if count > required else count
        if not required <= given <= len(names):
            raise ConfigError(
                f"A row has {count} arrays; forward takes {', '.join(names)}, and one more may be the targets. Give "
                "one for each, in this order."
            )
        inputs = dict(zip(names, map(_tensor, items[:given]), strict=False))
        return inputs, _target(items[given]) if count > given else None

    def _split_names(self, batch: dict[str, Any]) -> Batch:
        names = [parameter.name for parameter in self._parameters]
        others = [name for name in batch if name not in names]
        if others and (len(others) > 1 or not self._labelled):
            raise ConfigError(
                f"rows has {', '.join(map(repr, others))}, which forward does not take."
                f"{nearest(str(others[0]), names)} It takes {', '.join(names)}. With a metric, one other name may hold "
                "the targets."
            )
        target = _target(batch.pop(others[0])) if others else None
        return {name: _tensor(value) for name, value in batch.items()}, target


def _parameters(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        found = list(inspect.signature(forward).parameters.values())
    except ValueError as error:  # TorchScript's have none
        raise ConfigError("The module is no Python module; give the one that it was made of.") from error
    named = [each for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if not named:
        raise ConfigError("forward names no parameters; a graph's inputs are called after them. Write them out.")
    return named


def _loading(rows: Any) -> Callable[[], Iterable[Any]]:
    """Return what begins to go through the rows."""
    if isinstance(rows, Iterator):
        raise ConfigError(f"rows is a {type(rows).__name__}, which can be read once; give a list, or a DataLoader.")
    rows = _array(rows)
    if isinstance(rows, torch.Tensor | np.ndarray | Mapping | tuple):
        whole = dict(rows) if isinstance(rows, Mapping) else rows
        return lambda: _slices(whole)
    if not isinstance(rows, DataLoader | str | bytes) and hasattr(rows, "__getitem__"):
        rows = DataLoader(rows, BATCH)
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise ConfigError(f"rows is a {type(rows).__name__}; give arrays by name, a Dataset or a DataLoader.")
    return lambda: rows


def _slices(whole: Any) -> Iterator[Any]:
    """Cut arrays that hold all rows into batches."""
    arrays = list(whole.values()) if isinstance(whole, dict) else whole if isinstance(whole, tuple) else (whole,)
    arrays = list(map(_array, arrays))
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise ConfigError(f"The arrays of rows have {sorted(counts)} rows; each must have one for every row.")
    for start in range(0, counts.pop(), BATCH):
        parts = [array[start : start + BATCH] for array in arrays]
        yield dict(zip(whole, parts, strict=True)) if isinstance(whole, dict) else tuple(parts)


def _array(value: Any) -> Any:
    """Return the array of what pandas, polars or pyarrow hold; anything else as it is."""
    return value.to_numpy() if hasattr(value, "to_numpy") else value


class _RawRows(Dataset[Any]):
    """Raw inputs, of which processing makes rows when they are asked for."""

    def __init__(self, raw: list[Any], targets: Any, processing: Processing, name: str) -> None:
        if targets is not None and len(targets) != len(raw):
            raise ConfigError(f"rows has {len(raw)} raw inputs and {len(targets)} targets; give one for each.")
        self._raw, self._targets, self._processing, self._name = raw, targets, processing, name

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, number: int) -> Any:
        try:
            row: dict[str, Any] = self._processing.named(self._raw[number], self._name)
        except ProcessingError as error:
            raise ConfigError(f"Raw row {number} cannot be prepared: {error}") from error
        return row if self._targets is None else row | {TARGETS: self._targets[number]}


def _raw(rows: Any) -> tuple[list[Any], Any]:
    """Return raw inputs and their targets."""
    raw, *targets = rows if isinstance(rows, tuple) else (rows,)
    raw = _records(raw)
    if isinstance(raw, str | bytes | Mapping) or not isinstance(raw, Iterable) or len(targets) > 1:
        raise ConfigError(
            "With processing, rows are raw inputs as clients send them, in a list; or a tuple of that list and the "
            f"targets. rows is a {type(rows).__name__}."
        )
    return list(raw), targets[0] if targets else None


def _records(raw: Any) -> Any:
    """Return the rows of a DataFrame of pandas or polars as objects, as clients send them."""
    if hasattr(raw, "to_dicts"):
        return raw.to_dicts()
    return raw.to_dict("records") if hasattr(raw, "to_dict") and hasattr(raw, "columns") else raw


def _tensor(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"rows holds a {type(value).__name__}, which is no array of numbers: {str(error).rstrip('.')}."
        ) from error


def _target(value: Any) -> Any:
    """A tensor where that can be; else as it is."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value
