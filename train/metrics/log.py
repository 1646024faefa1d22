"""What `self.log` records: the latest value of each step, and exact reductions over an epoch and all workers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError, TrainingError
from shipline.train.metrics.batch import rows_of
from shipline.train.metrics.objects import Gather, epoch_value, is_metric, path_of, step_value
from shipline.train.metrics.reduction import Reduced, Value, parse_reduction

if TYPE_CHECKING:
    from torch import nn

Stage = Literal["train", "validate", "test"]


@dataclass
class _Entry:
    """One metric over an epoch."""

    shown_as: str  # its name for loggers and the progress bar
    prog_bar: bool
    logger: bool
    values: Reduced | None = None  # of numbers ...
    metric: Any = None  # ... or what reduces in its own way
    attribute: str | None = None  # where the module holds it
    loader: str = ""  # which of several loaders it was logged of: the suffix of its names


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of an epoch: all of them, those for the loggers, those for the progress bar; the last of steps."""

    all: dict[str, float]
    logged: dict[str, float]
    shown: dict[str, float]
    steps: dict[str, float]
    #: Which of several loaders each of all is of, by the suffix of its names; those that are of none are left out.
    loaders: dict[str, str]
    #: The torchmetrics objects behind them.
    objects: list[Any]

    def reset(self) -> None:
        """Let the torchmetrics objects begin anew; hooks at the end of the epoch may still compute them before."""
        for metric in self.objects:
            metric.reset()

    def of_loader(self, suffix: str) -> dict[str, float]:
        """Return what was logged of that loader, or of none."""
        return {name: value for name, value in self.all.items() if self.loaders.get(name, suffix) == suffix}


class MetricLog:
    """Collects what a stage logs. A mean is weighted by rows, so that a short last batch counts for what it is."""

    def __init__(self) -> None:
        self.step: dict[str, Value] = {}
        self.step_logged: dict[str, Value] = {}
        self.progress: dict[str, Value] = {}
        self._synced: dict[str, str] = {}  # names of step values to be reduced over workers, and how
        self._entries: dict[str, _Entry] = {}
        self._of_stages: dict[Stage, dict[str, _Entry]] = {}
        self._stage: Stage | None = None
        self._batch: Any = None
        self._in_batch = False
        #: Added to names while one of several loaders is evaluated.
        self.suffix = ""
        #: The module whose attributes hold torchmetrics objects.
        self.module: nn.Module | None = None

    @contextlib.contextmanager
    def stage(self, stage: Stage | None, entries: dict[str, _Entry] | None = None) -> Iterator[None]:
        """Collect an epoch of `stage`, or go on with its `entries`; afterwards go on with the one around it.

        Within None nothing can be logged.
        """
        outer = (self._entries, self._stage, self._batch, self._in_batch, self.step_logged)
        self.step_logged = {}
        self._entries = {} if entries is None else entries
        self._stage, self._batch, self._in_batch = stage, None, False
        around = dict(self._of_stages)
        if stage is not None:
            self._of_stages[stage] = self._entries
        try:
            yield
        finally:
            self._of_stages = around
            self._entries, self._stage, self._batch, self._in_batch, self.step_logged = outer

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
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        sync_dist: bool = False,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
    ) -> None:
        """Record one number or metric; see `Module.log`."""
        if self._stage is None:
            raise TrainingError(
                f"log({name!r}) came where nothing collects it: log in steps, or in hooks from the start of a stage to "
                "the end of its epoch."
            )
        number = None if is_metric(value) else _number(name, value)
        end = self.suffix if add_dataloader_idx else ""
        training = self._in_batch and self._stage == "train"
        on_step = training if on_step is None else on_step
        on_epoch = not training if on_epoch is None else on_epoch
        if on_step:
            key = f"{name}_step{end}" if on_epoch else f"{name}{end}"
            latest = _number(name, step_value(name, value)) if number is None else number
            self._log_step(key, latest, prog_bar, logger)
            if training and on_epoch:
                self.step[name] = latest  # callbacks find it under both names
            if sync_dist:
                self._synced[key] = parse_reduction(name, reduce_fx)
        elif not on_epoch:
            raise ConfigError(f"log({name!r}) has on_step=False and on_epoch=False: set one of them, or leave it out.")
        if on_epoch:
            entry = self._entries.get(f"{name}{end}")
            if entry is None:
                shown_as = f"{name}_epoch{end}" if on_step else f"{name}{end}"
                entry = _Entry(shown_as, prog_bar, logger is not False, loader=self.suffix)
                self._fill(entry, name, value, number, reduce_fx, metric_attribute)
                self._entries[f"{name}{end}"] = entry
            elif entry.loader != self.suffix:  # it is of several
                entry.loader = ""
            if entry.values is not None:
                assert number is not None
                entry.values.add(number, batch_size or (rows_of(self._batch) if self._in_batch else 1))

    def _log_step(self, key: str, number: Value, prog_bar: bool, logger: bool | None) -> None:
        self.step[key] = number
        if logger is not False and self._in_batch:
            self.step_logged[key] = number
        if prog_bar:
            self.progress[key] = number

    def _fill(
        self, entry: _Entry, name: str, value: Any, number: Value | None, reduce_fx: Any, attribute: str | None
    ) -> None:
        if number is None:
            entry.metric, entry.attribute = value, attribute or path_of(value, self.module)
        else:
            entry.values = Reduced(parse_reduction(name, reduce_fx))

    def reduce_steps(self, gather: Gather) -> None:
        """Reduce the latest values over all workers, where they were logged with `sync_dist`."""
        if not self._synced:
            return
        own = {name: float(self.step[name]) for name in self._synced if name in self.step}
        everybody = gather(own)
        for name in own:
            values = [theirs[name] for theirs in everybody if name in theirs]
            total = _ACROSS[self._synced[name]](values)
            for kind in (self.step, self.step_logged, self.progress):
                if name in kind:
                    kind[name] = total

    def reduce_epoch(self, gather: Gather, world_size: int = 1) -> EpochMetrics:
        """Return the epoch's metrics over all workers. What steps log too has its value as `name` and `name_epoch`."""
        steps = {name: float(value) for name, value in self.step.items()}
        everybody = gather((_states(self._entries), steps))
        entries = self._merged([states for states, _ in everybody])
        results = {name: self._result(name, entry, gather, world_size) for name, entry in entries.items()}
        together: dict[str, list[float]] = {}
        for _, theirs in everybody:
            for name, value in theirs.items():
                together.setdefault(name, []).append(value)
        return EpochMetrics(
            all=results | {entry.shown_as: results[name] for name, entry in entries.items()},
            logged={entry.shown_as: results[name] for name, entry in entries.items() if entry.logger},
            shown={entry.shown_as: results[name] for name, entry in entries.items() if entry.prog_bar},
            # Every worker has seen another batch, and all must come to the same decisions.
            steps={name: sum(values) / len(values) for name, values in together.items()},
            loaders={
                key: entry.loader for name, entry in entries.items() for key in (name, entry.shown_as) if entry.loader
            },
            objects=[entry.metric for entry in entries.values() if entry.metric is not None],
        )

    def entries_state(self, stage: Stage) -> dict[str, Any]:
        """Return what the epoch of a stage has collected so far, as plain data; metrics keep theirs themselves."""
        return _states(self._of_stages.get(stage, {}))

    def entries_from(self, states: list[dict[str, Any]]) -> dict[str, _Entry]:
        """Return the entries of one or several workers' states, to go on with."""
        return self._merged(states)

    def _merged(self, everybody: list[dict[str, Any]]) -> dict[str, _Entry]:
        merged: dict[str, _Entry] = {}
        for states in everybody:
            for name, state in states.items():
                if name not in merged:
                    shown_as, prog_bar, logger, loader = state["about"]
                    merged[name] = _Entry(shown_as, prog_bar, logger, attribute=state["attribute"], loader=loader)
                    if state["reduction"] is None:
                        merged[name].metric = self._metric(name, state["attribute"])
                    else:
                        merged[name].values = Reduced(state["reduction"])
                if (values := merged[name].values) is not None:
                    values.merge([state["values"]])
        return merged

    def _metric(self, name: str, attribute: str | None) -> Any:
        """The metric that this worker logs, or would have logged had it had a row."""
        if (own := self._entries.get(name)) is not None and own.metric is not None:
            return own.metric
        if attribute is None or self.module is None:
            raise TrainingError(
                f"log({name!r}) has a metric that is no attribute of the module, so that the other workers cannot find "
                "theirs: assign it to an attribute, or name that with metric_attribute."
            )
        return self.module.get_submodule(attribute)

    @staticmethod
    def _result(name: str, entry: _Entry, gather: Gather, world_size: int) -> float:
        if entry.values is not None:
            return entry.values.result()
        value = epoch_value(entry.metric, gather, world_size)
        return float(_number(name, value))


def _states(entries: dict[str, _Entry]) -> dict[str, Any]:
    return {
        name: {
            "about": (entry.shown_as, entry.prog_bar, entry.logger, entry.loader),
            "reduction": None if entry.values is None else entry.values.reduction,
            "values": None if entry.values is None else entry.values.state(),
            "attribute": entry.attribute,
        }
        for name, entry in entries.items()
    }


_ACROSS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / len(values), "sum": sum, "min": min, "max": max,
}  # fmt: skip


def finite_or_none(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics as JSON can hold them: what is not finite becomes None."""
    return {name: float(value) if math.isfinite(float(value)) else None for name, value in metrics.items()}


def _number(name: str, value: Any) -> Value:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise TrainingError(
                f"log({name!r}) needs one number; got a tensor of shape {list(value.shape)}. Reduce it first."
            )
        value = value.detach()
        # On the CPU a number is there already; on an accelerator asking for it would wait for the device.
        return float(value.item()) if value.device.type == "cpu" else value.reshape(())
    if isinstance(value, bool | int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0):
        return float(value)
    raise TrainingError(
        f"log({name!r}) needs a number or a tensor of one, or a torchmetrics.Metric; got {type(value).__name__}."
    )
