"""A limit on the time that a fit takes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from shipline.errors import ConfigError
from shipline.train.callbacks.base import Callback
from shipline.train.duration import Duration, seconds_of

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_STAGES = ("train", "validate", "test")


class Timer(Callback):
    """Measures how long training, validation and test take, and stops training when its time is up.

    Args:
        duration: time to train for: "DD:HH:MM:SS", a timedelta, or a dict of its arguments; default: no limit.
        interval: look after every "step", or every "epoch".
        verbose: log that the time is up.
    """

    def __init__(
        self, duration: Duration | None = None, interval: Literal["step", "epoch"] = "step", verbose: bool = True
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigError(f"Timer has interval={interval!r}; choose 'step' or 'epoch'.")
        self._limit = None if duration is None else seconds_of("duration", duration)
        self._interval = interval
        self._verbose = verbose
        self._spent = dict.fromkeys(_STAGES, 0.0)
        self._began: dict[str, float] = {}

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds that a stage ("train", "validate", "test") has taken so far, resumed runs included."""
        running = time.monotonic() - self._began[stage] if stage in self._began else 0.0
        return self._spent[stage] + running

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds that are left, None where there is no limit."""
        return None if self._limit is None else self._limit - self.time_elapsed(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the time spent."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the time spent."""
        self._spent = dict(state["time_elapsed"])

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Stop at once where the time was up before."""
        self._look(trainer)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start("train")

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Stop the clock."""
        self._stop("train")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start("validate")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Stop the clock."""
        self._stop("validate")

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start("test")

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Stop the clock."""
        self._stop("test")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        if self._interval == "step":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Look at the clock."""
        if self._interval == "epoch":
            self._look(trainer)

    def _start(self, stage: str) -> None:
        self._began[stage] = time.monotonic()

    def _stop(self, stage: str) -> None:
        self._spent[stage] = self.time_elapsed(stage)
        self._began.pop(stage, None)

    def _look(self, trainer: Trainer) -> None:
        if self._limit is None or trainer.should_stop or self.time_elapsed() < self._limit:
            return
        trainer.should_stop = True
        if self._verbose and trainer.is_global_zero:
            logger.info("Stopping: the time of %.0f s is up.", self._limit)
