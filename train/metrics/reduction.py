"""A number over an epoch. Sums are exact: rounded once, at the end, so that no order of batches or workers matters."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from shipline.errors import ConfigError

Reduction = Literal["mean", "sum", "min", "max"]
#: A number, or a tensor of one on an accelerator, which to read would mean to wait for.
Value = float | torch.Tensor

_NAMES: tuple[Reduction, ...] = ("mean", "sum", "min", "max")
_PENDING = 128  # tensors on an accelerator that are read together
_FUNCTIONS: dict[Any, Reduction] = {
    torch.mean: "mean", torch.sum: "sum", torch.min: "min", torch.max: "max", sum: "sum", min: "min", max: "max",
    "avg": "mean",
}  # fmt: skip


def parse_reduction(name: str, reduce_fx: Any) -> Reduction:
    """Return the reduction that is meant: by its name, or by the function of torch or Python that does it.

    Raises:
        ConfigError: it is none of the four.
    """
    named: Any = _FUNCTIONS.get(reduce_fx, reduce_fx) if isinstance(reduce_fx, str) or callable(reduce_fx) else None
    found = next((known for known in _NAMES if known == named), None)
    if found is None:
        raise ConfigError(
            f"log({name!r}) has reduce_fx={reduce_fx!r}; choose mean, sum, min or max, or log a torchmetrics.Metric, "
            "which reduces in its own way."
        )
    return found


class Reduced:
    """The values that were logged under one name, and the rows behind each."""

    def __init__(self, reduction: Reduction) -> None:
        self.reduction = reduction
        self._values = array("d")
        self._rows = 0
        self._pending: list[torch.Tensor] = []

    def add(self, value: Value, rows: int) -> None:
        """Take a value; a mean weighs it by its rows."""
        if self.reduction == "mean":
            value = value * rows
            self._rows += rows
        if isinstance(value, float):
            self._append(value)
        else:
            self._pending.append(value)
            if len(self._pending) >= _PENDING:
                self._read_pending()

    def state(self) -> dict[str, Any]:
        """Return what was taken so far, as plain data."""
        self._read_pending()
        return {"values": self._values.tobytes(), "rows": self._rows}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Take what others took."""
        for state in states:
            for value in array("d", state["values"]):
                self._append(value)
            self._rows += state["rows"]

    def result(self) -> float:
        """Return the mean over rows, the sum, or the least or greatest value."""
        self._read_pending()
        if self.reduction in ("min", "max"):
            return self._values[0]
        total = _exact_sum(self._values)
        return total / self._rows if self.reduction == "mean" and self._rows else total

    def _append(self, value: float) -> None:
        if self.reduction in ("min", "max") and self._values:
            self._values[0] = _EXTREMES[self.reduction](self._values[0], value)
        else:
            self._values.append(value)

    def _read_pending(self) -> None:
        if self._pending:
            values = torch.stack([tensor.reshape(()).double().cpu() for tensor in self._pending]).tolist()
            self._pending = []
            for value in values:
                self._append(value)


def _extreme(choose: Callable[[float, float], float]) -> Callable[[float, float], float]:
    """As in torch, what is no number is the result."""
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else choose(a, b)


_EXTREMES = {"min": _extreme(min), "max": _extreme(max)}


def _exact_sum(values: array[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond the largest number
        return float(sum(values))
