"""What `configure_optimizers` may return, in one form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from shipline.errors import ConfigError, nearest

_FORMS = (
    "return an optimizer, ([optimizer], [scheduler]) or {'optimizer': ..., 'lr_scheduler': ...} "
    "from configure_optimizers"
)


@dataclass
class Schedule:
    """A learning rate scheduler, and when it steps."""

    scheduler: Any
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scheduler, Optimizer) or not hasattr(self.scheduler, "step"):
            raise ConfigError(
                f"lr_scheduler is a {type(self.scheduler).__name__}, which is no learning rate scheduler."
            )
        if not isinstance(self.frequency, int) or self.frequency < 1:
            raise ConfigError(f"lr_scheduler has frequency={self.frequency!r}; set a whole number from 1 on.")
        if self.interval not in ("epoch", "step"):
            raise ConfigError(f"lr_scheduler has interval={self.interval!r}; choose 'epoch' or 'step'.")
        if self.needs_metric and self.monitor is None:
            raise ConfigError("ReduceLROnPlateau needs a metric: {'scheduler': ..., 'monitor': 'val_loss'}.")

    @property
    def needs_metric(self) -> bool:
        """Whether the scheduler steps on the value of a metric."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Step, with the monitored metric where one is needed."""
        if not self.needs_metric:
            self.scheduler.step()
        elif (value := metrics.get(str(self.monitor))) is not None:
            self.scheduler.step(value)
        elif self.strict:
            raise ConfigError(
                f"lr_scheduler monitors {self.monitor!r}, which nobody logged.{nearest(str(self.monitor), metrics)} "
                f"Logged: {', '.join(metrics) or 'nothing'}."
            )


def parse_optimizers(returned: Any) -> tuple[Optimizer, list[Schedule]]:
    """Return the optimizer and its schedules, from any form that `configure_optimizers` may return.

    Raises:
        ConfigError: it is none of those forms, or more than one optimizer.
    """
    optimizers, schedules = _split(returned)
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        found = ", ".join(type(item).__name__ for item in optimizers) or "none"
        raise ConfigError(f"One optimizer is needed; got {found}: {_FORMS}.")
    return optimizers[0], [_schedule(item) for item in schedules]


def _split(returned: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping):
        return _split_dict(returned)
    if isinstance(returned, list | tuple):
        if len(returned) == 1 and isinstance(returned[0], Mapping):
            return _split_dict(returned[0])
        if len(returned) == 2 and isinstance(returned[0], list | tuple):
            optimizers, schedules = returned
            return optimizers, schedules if isinstance(schedules, list | tuple) else [schedules]
        return returned, []
    return [] if returned is None else [returned], []


def _split_dict(returned: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    _check_keys("configure_optimizers", returned, ("optimizer", "lr_scheduler", "monitor"))
    if "optimizer" not in returned:
        raise ConfigError(f"configure_optimizers returned a dict without 'optimizer': {_FORMS}.")
    schedule = returned.get("lr_scheduler")
    if schedule is not None and "monitor" in returned:  # Lightning takes it beside the scheduler, too
        settings = schedule if isinstance(schedule, Mapping) else {"scheduler": schedule}
        schedule = {"monitor": returned["monitor"], **settings}
    return [returned["optimizer"]], [] if schedule is None else [schedule]


def _schedule(item: Any) -> Schedule:
    if not isinstance(item, Mapping):
        return Schedule(item)
    _check_keys("lr_scheduler", item, Schedule.__dataclass_fields__)
    if "scheduler" not in item:
        raise ConfigError("lr_scheduler has no 'scheduler': {'scheduler': ..., 'interval': 'epoch'}.")
    return Schedule(**item)


def _check_keys(owner: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    for key in settings:
        if key not in known:
            raise ConfigError(f"{owner} has no setting {key!r}.{nearest(str(key), known)} Known: {', '.join(known)}.")
