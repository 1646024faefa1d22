"""From what a stage logs to callbacks and loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from shipline.train.metrics import EpochMetrics, Stage

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


@contextlib.contextmanager
def collecting(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """Collect what the block logs."""
    with trainer.metrics.stage(stage):
        yield


def reduced(trainer: Trainer, reset: bool = True) -> EpochMetrics:
    """Reduce what was collected over the epoch and all workers, show it to callbacks, and return it."""
    metrics = trainer.metrics
    epoch = metrics.reduce_epoch(trainer.strategy.gather_data, trainer.strategy.world_size)
    metrics.step.clear()  # or it would hide, later on, what another stage logs under the same name
    latest = epoch.steps | epoch.all
    trainer.reduced_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in latest.items()})
    trainer.epoch_progress.update(epoch.shown)
    if reset:
        epoch.reset()
    return epoch


def log_step(trainer: Trainer) -> None:
    """Give loggers what training steps logged last."""
    trainer.metrics.reduce_steps(trainer.strategy.gather_data)
    log_values(trainer, {name: float(value) for name, value in trainer.metrics.step_logged.items()})


def log_values(trainer: Trainer, values: dict[str, float], step: int | None = None) -> None:
    """Give loggers these values, at a step of their own or at the number of batches that have stepped."""
    if not values or trainer.sanity_checking:
        return
    trainer.logged_metrics.update(values)
    metrics: dict[str, Any] = dict(values)
    if step is None:
        axis = metrics.pop("step", None)  # who logs a "step" chooses the axis
        step = trainer.progress.stepped_batches if axis is None else int(axis)
        if axis is None:
            metrics.setdefault("epoch", trainer.current_epoch)
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
