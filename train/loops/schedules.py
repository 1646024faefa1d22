"""What `configure_optimizers` may return, in one form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from shipline.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

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
    reduce_on_plateau: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.scheduler, Optimizer) or not hasattr(self.scheduler, "step"):
            raise ConfigError(
                f"lr_scheduler is a {type(self.scheduler).__name__}, which is no learning rate scheduler."
            )
        if not isinstance(self.frequency, int) or self.frequency < 1:
            raise ConfigError(f"lr_scheduler has frequency={self.frequency!r}; set a whole number from 1 on.")
        if self.interval not in ("epoch", "step"):
            raise ConfigError(f"lr_scheduler has interval={self.interval!r}; choose 'epoch' or 'step'.")
        self.reduce_on_plateau |= isinstance(self.scheduler, ReduceLROnPlateau)


def step(schedule: Schedule, metrics: Mapping[str, Any], act: Callable[[Any, Any], None]) -> None:
    """Let `act` step the scheduler, with the monitored metric where one is needed, else with None.

    In place of a Schedule, a callback of Lightning's may have put what has the same attributes.

    Raises:
        ConfigError: nobody has logged the metric, and the schedule is strict about it.
    """
    if not schedule.reduce_on_plateau:
        act(schedule.scheduler, None)
    elif (value := metrics.get(str(schedule.monitor))) is not None:
        act(schedule.scheduler, value)
    elif schedule.strict:
        raise ConfigError(
            f"lr_scheduler monitors {schedule.monitor!r}, which nobody logged."
            f"{nearest(str(schedule.monitor), metrics)} Logged: {', '.join(metrics) or 'nothing'}."
        )


def parse_optimizers(returned: Any, automatic: bool = True) -> tuple[list[Optimizer], list[Schedule]]:
    """Return the optimizers and their schedules, from any form that `configure_optimizers` may return.

    Args:
        returned: what it returned; None is to train without an optimizer.
        automatic: whether the schedules are stepped by the loop, which then must know what they monitor.

    Raises:
        ConfigError: it is none of those forms.
    """
    if returned is None:
        return [], []
    optimizers, schedules = _split(returned)
    if not optimizers or not all(isinstance(item, Optimizer) for item in optimizers):
        found = ", ".join(type(item).__name__ for item in optimizers) or "none"
        raise ConfigError(f"Optimizers are needed; got {found}: {_FORMS}.")
    parsed = [_schedule(item) for item in schedules]
    for schedule in parsed if automatic else []:
        if schedule.reduce_on_plateau and schedule.monitor is None:
            kind = type(schedule.scheduler).__name__
            raise ConfigError(f"{kind} needs a metric: {{'scheduler': ..., 'monitor': 'val_loss'}}.")
    return list(optimizers), parsed


def _split(returned: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping):
        return _split_dict(returned)
    if isinstance(returned, list | tuple):
        if returned and all(isinstance(item, Mapping) for item in returned):
            parts = [_split_dict(item) for item in returned]
            return [o for found, _ in parts for o in found], [s for _, found in parts for s in found]
        if len(returned) == 2 and isinstance(returned[0], list | tuple):
            optimizers, schedules = returned
            return optimizers, schedules if isinstance(schedules, list | tuple) else [schedules]
        return returned, []
    return [returned], []


def _split_dict(returned: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    returned = _known("configure_optimizers", returned, ("optimizer", "lr_scheduler", "monitor"))
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
    item = _known("lr_scheduler", item, Schedule.__dataclass_fields__)
    if "scheduler" not in item:
        raise ConfigError("lr_scheduler has no 'scheduler': {'scheduler': ..., 'interval': 'epoch'}.")
    return Schedule(**item)


def _known(owner: str, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The settings that are known. One that looks misspelled is refused; any other means nothing, as in Lightning."""
    for key in settings:
        if key in known:
            continue
        if guess := nearest(str(key), known):
            raise ConfigError(f"{owner} has no setting {key!r}.{guess} Known: {', '.join(known)}.")
        logger.warning("%s has a setting %r, which means nothing. Known: %s.", owner, key, ", ".join(known))
    return {key: value for key, value in settings.items() if key in known}
