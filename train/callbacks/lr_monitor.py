"""Learning rates over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback
from shipline.train.loops.logging import log_values

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

Interval = Literal["step", "epoch"]


@dataclass(frozen=True)
class _Watched:
    """An optimizer, what its parameter groups are called, and how often its scheduler steps."""

    optimizer: Optimizer
    names: list[str]
    interval: str | None


class LearningRateMonitor(Callback):
    """Gives loggers the learning rates, by Lightning's names: `lr-Adam`, a second one `lr-Adam-1`, groups `lr-SGD/pg1`.

    The `name` of a schedule takes the place of `lr-Adam`, that of a parameter group the place of `pg1`.

    Args:
        logging_interval: "step" or "epoch"; default: as often as each scheduler steps.
        log_momentum: log the momentum, or the first beta, as `lr-Adam-momentum`; 0 where there is none.
        log_weight_decay: log the weight decay as `lr-Adam-weight_decay`.
    """

    def __init__(
        self, logging_interval: Interval | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigError(
                f"LearningRateMonitor has logging_interval={logging_interval!r}; choose 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self._begin()

    def _begin(self) -> None:
        #: What was logged in this fit, by name.
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Forget the fit before.

        Raises:
            ConfigError: nobody would take what it logs.
        """
        if stage != "fit":
            return
        self._begin()
        if not trainer.loggers and not trainer.fast_dev_run:
            raise ConfigError("LearningRateMonitor has no logger to write to: give the Trainer one, or leave it out.")

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Find the names."""
        for name in (name for watched in _watched(trainer) for name in watched.names):
            self.lrs[name] = []
            self.last_momentum_values[f"{name}-momentum"] = None
            self.last_weight_decay_values[f"{name}-weight_decay"] = None

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Log those that go by steps."""
        if self.logging_interval != "epoch" and trainer.logs_this_step():
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Log those that go by epochs."""
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, interval: Interval) -> None:
        values: dict[str, float] = {}
        for watched in _watched(trainer):
            if self.logging_interval is None and watched.interval not in (None, interval):
                continue
            for group, name in zip(watched.optimizer.param_groups, watched.names, strict=True):
                values |= self._values(group, name)
        trainer.reduced_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})
        log_values(trainer, values, trainer.progress.stepped_batches)

    def _values(self, group: dict[str, Any], name: str) -> dict[str, float]:
        values = {name: float(group["lr"])}
        self._list_of(name).append(values[name])
        if self.log_momentum:
            found = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
            values[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = float(found)
        if self.log_weight_decay:
            found = group.get("weight_decay", 0.0)
            values[f"{name}-weight_decay"] = self.last_weight_decay_values[f"{name}-weight_decay"] = float(found)
        return values

    def _list_of(self, name: str) -> list[float]:
        """The values under the name. An optimizer that gets a second group goes on with the first under a new one."""
        alone = name.removesuffix("/pg1")
        if alone != name and alone in self.lrs:
            self.lrs[name] = self.lrs.pop(alone)
        return self.lrs.setdefault(name, [])


def _watched(trainer: Trainer) -> list[_Watched]:
    """Return the optimizers of the schedules, then those without one."""
    count: Counter[type] = Counter()
    scheduled = [
        _Watched(optimizer, list(_names(optimizer, schedule.name, count)), schedule.interval)
        for schedule in trainer.schedules
        if (optimizer := getattr(schedule.scheduler, "optimizer", None)) is not None
    ]
    return scheduled + [
        _Watched(optimizer, list(_names(optimizer, None, count)), None)
        for optimizer in trainer.optimizers
        if not any(optimizer is watched.optimizer for watched in scheduled)
    ]


def _names(optimizer: Optimizer, given: str | None, count: Counter[type]) -> Iterator[str]:
    """Yield a name for each parameter group; `count` holds how many optimizers of each class were named before."""
    kind = type(optimizer)
    if given is None:
        count[kind] += 1
    name = f"lr-{kind.__name__}" if given is None else given
    if count[kind] > 1:
        name += f"-{count[kind] - 1}"
    groups = optimizer.param_groups
    own = [group.get("name") or (f"pg{i}" if len(groups) > 1 else None) for i, group in enumerate(groups, 1)]
    if len(set(own)) < len(own):
        raise ConfigError(f"The parameter groups of {kind.__name__} are called {', '.join(map(str, own))}: name each.")
    for part in own:
        yield name if part is None else f"{name}/{part}"
