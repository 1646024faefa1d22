"""Stop when a metric no longer improves."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

from shipline.errors import ConfigError, nearest
from shipline.train.callbacks.base import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stops the run when the monitored metric has not improved for a while.

    Args:
        monitor: the logged metric.
        min_delta: the least change that counts as an improvement.
        patience: checks without improvement before the run stops.
        mode: "min" or "max" of the metric is best.
        strict: raise where nobody logs the metric.
        check_finite: stop when the metric is NaN or infinite.
        stopping_threshold: stop as soon as the metric is better than this.
        divergence_threshold: stop as soon as the metric is worse than this.
        check_on_train_epoch_end: look at the end of epochs, not of validations; default: where each epoch ends in one.
        log_rank_zero_only: taken for Lightning's sake: one worker logs.
        verbose: log every improvement.
    """

    monitors = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"EarlyStopping has mode={mode!r}; choose 'min' or 'max'.")
        self.monitor = monitor
        self.min_delta = abs(min_delta)
        self.patience = patience
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.verbose = verbose
        self._begin()

    def _begin(self) -> None:
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = math.inf if self.mode == "min" else -math.inf
        self.reason: str | None = None

    @property
    def state_key(self) -> str:
        """One state for each monitored metric."""
        return f"EarlyStopping({self.monitor},{self.mode})"

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and how long ago it was."""
        return {"wait_count": self.wait_count, "best_score": self.best_score, "stopped_epoch": self.stopped_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the best score and how long ago it was."""
        self.wait_count, self.best_score = state["wait_count"], state["best_score"]
        self.stopped_epoch = state["stopped_epoch"]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Look at the metric, where epochs are what counts."""
        if self._at_epoch_end(trainer):
            self._look(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Look at the metric, where validations are what counts."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self._at_epoch_end(trainer):
            self._look(trainer)

    def _at_epoch_end(self, trainer: Trainer) -> bool:
        if self.check_on_train_epoch_end is not None:
            return self.check_on_train_epoch_end
        if not trainer.enable_validation:
            return True
        return trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0

    def _look(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if trainer.fast_dev_run or (self.monitor not in metrics and not self.strict):
            return
        if self.monitor not in metrics:
            raise ConfigError(
                f"EarlyStopping monitors {self.monitor!r}, which nobody logged.{nearest(self.monitor, metrics)} "
                f"Logged: {', '.join(metrics) or 'nothing'}."
            )
        before = self.best_score
        self.reason = self._judge(float(metrics[self.monitor]))
        if self.verbose and self.best_score != before:
            logger.info("%s improved to %.6g.", self.monitor, self.best_score)
        if self.reason is not None:
            logger.info("Stopping: %s.", self.reason)
            self.stopped_epoch = trainer.current_epoch
            trainer.should_stop = True

    def _judge(self, value: float) -> str | None:
        """Return why to stop, or None."""
        if self.check_finite and not math.isfinite(value):
            return f"{self.monitor} is {value}"
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            return f"{self.monitor}={value:.6g} is better than {self.stopping_threshold}"
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            return f"{self.monitor}={value:.6g} is worse than {self.divergence_threshold}"
        if self._better(value, self.best_score, self.min_delta):
            self.best_score, self.wait_count = value, 0
            return None
        self.wait_count += 1
        if self.wait_count >= self.patience:
            return f"{self.monitor} did not improve on {self.best_score:.6g} for {self.wait_count} checks"
        return None

    def _better(self, value: float, than: float, by: float = 0.0) -> bool:
        return value < than - by if self.mode == "min" else value > than + by
