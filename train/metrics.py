"""What `self.log` records: the latest value of each step, and exact reductions over an epoch and all workers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shipline.errors import ConfigError, TrainingError

Reduction = Literal["mean", "sum", "min", "max"]
Value = float | torch.Tensor
Stage = Literal["train", "validate", "test"]


@dataclass(slots=True)
class _Epoch:
    """One metric over an epoch: the sum of values times rows for a mean, else the reduced value."""

    shown_as: str  # its name for loggers and the progress bar
    reduce: Reduction
    prog_bar: bool
    logger: bool
    total: Any = None
    rows: int = 0

    def add(self, value: Value, rows: int) -> None:
        self.merge(value * rows if self.reduce == "mean" else value, rows)

    def merge(self, total: Value, rows: int) -> None:
        if self.total is None:
            self.total = total
        elif self.reduce in ("mean", "sum"):
            self.total = self.total + total
        else:
            self.total = _EXTREME[self.reduce](self.total, total)
        self.rows += rows

    def result(self) -> float:
        return float(self.total / self.rows) if self.reduce == "mean" and self.rows else float(self.total)


_EXTREME: dict[str, Callable[..., Any]] = {
    "min": lambda a, b: torch.minimum(a, b) if isinstance(a, torch.Tensor) else min(a, b),
    "max": lambda a, b: torch.maximum(a, b) if isinstance(a, torch.Tensor) else max(a, b),
}


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of an epoch: all of them, those for the loggers, those for the progress bar; the last of steps."""

    all: dict[str, float]
    logged: dict[str, float]
    shown: dict[str, float]
    steps: dict[str, float]


class MetricLog:
    """Collects what a stage logs. A mean is weighted by rows, so that a short last batch counts for what it is."""

    def __init__(self) -> None:
        self.step: dict[str, Value] = {}
        self.step_logged: dict[str, Value] = {}
        self.progress: dict[str, Value] = {}
        self._epoch: dict[str, _Epoch] = {}
        self._stage: Stage | None = None
        self._batch: Any = None
        self._in_batch = False

    @contextlib.contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Collect an epoch of `stage`; afterwards go on with the one around it."""
        outer = (self._epoch, self._stage, self._batch, self._in_batch)
        self._epoch, self._stage, self._batch, self._in_batch = {}, stage, None, False
        try:
            yield
        finally:
            self._epoch, self._stage, self._batch, self._in_batch = outer

    def forget_steps(self) -> None:
        """Forget the latest values of steps."""
        for values in (self.step, self.step_logged, self.progress):
            values.clear()

    def begin_batch(self, batch: Any) -> None:
        """Say which batch the next values belong to."""
        self._batch = batch
        self._in_batch = True

    def end_batch(self) -> None:
        """Say that the next values belong to no batch."""
        self._batch = None
        self._in_batch = False

    def log(
        self,
        name: str,
        value: Value,
        *,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Reduction = "mean",
        batch_size: int | None = None,
    ) -> None:
        """Record one number; see `Module.log`."""
        number = _number(name, value)
        if self._stage is None:
            raise TrainingError(
                f"log({name!r}) came where nothing collects it: log in steps, or in hooks from the start of a stage to "
                "the end of its epoch."
            )
        training = self._stage == "train" and self._in_batch
        on_step = training if on_step is None else on_step
        on_epoch = not training if on_epoch is None else on_epoch
        if on_step:
            key = f"{name}_step" if on_epoch else name
            self.step[key] = number
            if logger and training:
                self.step_logged[key] = number
            if prog_bar:
                self.progress[key] = number
        if on_epoch:
            if name not in self._epoch:
                shown_as = f"{name}_epoch" if on_step else name
                self._epoch[name] = _Epoch(shown_as, _reduction(name, reduce_fx), prog_bar, logger)
            self._epoch[name].add(number, batch_size or (rows_of(self._batch) if self._in_batch else 1))

    def reduce_epoch(self, gather: Callable[[Any], list[Any]]) -> EpochMetrics:
        """Return the epoch's metrics over all workers. What steps log too has its value as `name` and `name_epoch`."""
        own = {
            name: (m.shown_as, m.reduce, m.prog_bar, m.logger, float(m.total), m.rows)
            for name, m in self._epoch.items()
        }
        merged: dict[str, _Epoch] = {}
        steps: dict[str, list[float]] = {}
        for epoch, last in gather((own, {name: float(value) for name, value in self.step.items()})):
            for name, (*what, total, rows) in epoch.items():
                merged.setdefault(name, _Epoch(*what)).merge(total, rows)
            for name, value in last.items():
                steps.setdefault(name, []).append(value)
        results = {name: metric.result() for name, metric in merged.items()}
        return EpochMetrics(
            all=results | {metric.shown_as: results[name] for name, metric in merged.items()},
            logged={metric.shown_as: results[name] for name, metric in merged.items() if metric.logger},
            shown={metric.shown_as: results[name] for name, metric in merged.items() if metric.prog_bar},
            # Every worker has seen another batch, and all must come to the same decisions.
            steps={name: sum(values) / len(values) for name, values in steps.items()},
        )


def rows_of(batch: Any) -> int:
    """Return the number of rows of a batch: the length of its first tensor; 1 where there is none."""
    stack = [batch]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            return item.shape[0] if item.ndim else 1
        if isinstance(item, dict):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, list | tuple):
            stack.extend(reversed(item))
    return 1


def finite_or_none(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics as JSON can hold them: what is not finite becomes None."""
    return {name: float(value) if math.isfinite(float(value)) else None for name, value in metrics.items()}


def _number(name: str, value: Value) -> Value:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise TrainingError(
                f"log({name!r}) needs one number; got a tensor of shape {list(value.shape)}. Reduce it first."
            )
        value = value.detach()
        # On the CPU a number is there already; on an accelerator asking for it would wait for the device.
        return value.item() if value.device.type == "cpu" else value.reshape(())
    if isinstance(value, bool | int | float):
        return float(value)
    raise TrainingError(f"log({name!r}) needs a number or a tensor of one; got {type(value).__name__}.")


def _reduction(name: str, reduce_fx: Any) -> Reduction:
    if reduce_fx not in ("mean", "sum", "min", "max"):
        raise ConfigError(f"log({name!r}) has reduce_fx={reduce_fx!r}; choose mean, sum, min or max.")
    return reduce_fx  # type: ignore[no-any-return]
