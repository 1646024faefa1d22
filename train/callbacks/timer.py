"""How long stages take, and a limit on the time that a fit takes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from shipline.errors import ConfigError, nearest
from shipline.train.callbacks.callback import Callback
from shipline.train.options.duration import Duration, seconds_of

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_STAGES = ("train", "validate", "test", "predict")


class Timer(Callback):
    """Measures how long training, validation, test and prediction take, and stops training when its time is up.

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
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def _forget(self, *stages: str) -> None:
        for stage in stages:
            self._spent[stage] = 0.0
            self._started.pop(stage, None)
            self._ended.pop(stage, None)

    # ---- questions ---------------------------------------------------------------------------------------------------

    def start_time(self, stage: str = "train") -> float | None:
        """Return when the stage began last, by `time.monotonic`; None where it has not."""
        return self._started.get(_known(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """Return when the stage ended last, by `time.monotonic`; None where it runs, or never did."""
        return self._ended.get(_known(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds that a stage has taken so far: in this fit, all its validations, resumed runs included."""
        running = stage in self._started and stage not in self._ended
        return self._spent[_known(stage)] + (time.monotonic() - self._started[stage] if running else 0.0)

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds that are left, None where there is no limit."""
        return None if self._limit is None else self._limit - self.time_elapsed(stage)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the time spent."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the time spent."""
        self._forget(*_STAGES)
        self._spent |= state["time_elapsed"]

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin at zero; a resumed run takes up its state afterwards."""
        self._forget(*(("train", "validate") if stage == "fit" else (stage,)))

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Stop all clocks."""
        for stage in _STAGES:
            self._stop(stage)

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

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start("predict")

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Stop the clock."""
        self._stop("predict")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        if self._interval == "step":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Look at the clock."""
        if self._interval == "epoch":
            self._look(trainer)

    def _start(self, stage: str) -> None:
        self._started[stage] = time.monotonic()
        self._ended.pop(stage, None)

    def _stop(self, stage: str) -> None:
        if stage in self._started and stage not in self._ended:
            self._ended[stage] = time.monotonic()
            self._spent[stage] += self._ended[stage] - self._started[stage]

    def _look(self, trainer: Trainer) -> None:
        if self._limit is None or trainer.should_stop or self.time_elapsed() < self._limit:
            return
        trainer.should_stop = True
        if self._verbose and trainer.is_global_zero:
            logger.info("Stopping: the time of %.0f s is up.", self._limit)


def _known(stage: str) -> str:
    if stage not in _STAGES:
        raise ConfigError(f"Timer measures no {stage!r}.{nearest(stage, _STAGES)} Known: {', '.join(_STAGES)}.")
    return stage
