"""What a training step logs when it runs once for each microbatch, and on one worker of several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from shipline.train.metrics.objects import is_metric
from shipline.train.metrics.reduction import parse_reduction

if TYPE_CHECKING:
    from shipline.train.module import Module

_TOGETHER: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / len(values), "sum": sum, "min": min, "max": max,
}  # fmt: skip


class Logged:
    """Collects it, to log it once for the whole batch, on every worker alike."""

    def __init__(self, module: Module) -> None:
        self._metrics = module.trainer.metrics
        self._calls: dict[str, list[tuple[Any, tuple[Any, ...]]]] = {}

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Within it, what is logged is collected; torchmetrics' objects count each microbatch themselves."""
        log = self._metrics.log

        def take(name: str, value: Any, *options: Any) -> None:
            if is_metric(value):
                log(name, value, *options)
            else:
                self._calls.setdefault(name, []).append((value, options))

        self._metrics.log = take  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self._metrics.log

    def clear(self) -> None:
        """Forget what was collected."""
        self._calls.clear()

    def words(self) -> list[tuple[str, float, Any]]:
        """Return what was logged, each name once."""
        return [(name, _one(name, calls), calls[0][1]) for name, calls in self._calls.items()]

    def say(self, words: list[tuple[str, float, Any]]) -> None:
        """Log it; rows are counted of the whole batch."""
        for name, value, options in words:
            *before, _rows, attribute = options
            self._metrics.log(name, value, *before, None, attribute)  # type: ignore[call-arg]


def _one(name: str, calls: list[tuple[Any, Any]]) -> float:
    values = [float(value.detach() if isinstance(value, torch.Tensor) else value) for value, _ in calls]
    reduce_fx = calls[0][1][4]
    return _TOGETHER[parse_reduction(name, reduce_fx)](values)
