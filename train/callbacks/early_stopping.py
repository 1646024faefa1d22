"""Stop when a metric no longer improves."""

from __future__ import annotations

import logging
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError, nearest
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)


class EarlyStoppingReason(Enum):
    """Why EarlyStopping stopped a run."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


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
        log_rank_zero_only: taken for Lightning's sake: the first worker logs, and all decide alike.
        verbose: log every improvement, and where the metric is missing.

    Attributes:
        wait_count: checks since the last improvement.
        stopped_epoch: the epoch in which it stopped; 0 where it has not.
        stopping_reason: why it stopped.
        stopping_reason_message: the same in words.
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
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._best = math.inf if self.mode == "min" else -math.inf
        self._stays_stopped = False

    @property
    def best_score(self) -> torch.Tensor:
        """The best value of the metric so far."""
        return torch.tensor(self._best, dtype=torch.float64)

    @property
    def state_key(self) -> str:
        """One state for each monitored metric."""
        return f"EarlyStopping({self.monitor},{self.mode})"

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and how long ago it was."""
        return {
            "wait_count": self.wait_count,
            "best_score": self._best,
            "stopped_epoch": self.stopped_epoch,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
            "settings": self._settings(),
        }

    def _settings(self) -> list[Any]:
        """What decides when to stop."""
        return [self.patience, self.min_delta, self.check_finite, self.stopping_threshold, self.divergence_threshold]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the best score and how long ago it was; how long to wait is what this run was told."""
        self.wait_count, self._best = state["wait_count"], state["best_score"]
        self.stopped_epoch = state["stopped_epoch"]
        self.stopping_reason = EarlyStoppingReason(state["stopping_reason"])
        self.stopping_reason_message = state["stopping_reason_message"]
        stopped = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        self._stays_stopped = stopped and state.get("settings") == self._settings()

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Let a run that had been stopped end as it would have, unless it is told now to stop for something else."""
        if self._stays_stopped:
            trainer.should_stop = True
            if trainer.is_global_zero:
                logger.warning(
                    "The run was stopped: %s. To go on all the same, give EarlyStopping another patience or threshold.",
                    self.stopping_reason_message,
                )

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
        timed = trainer.val_check_seconds is not None
        return trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0 and not timed

    def _look(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if trainer.fast_dev_run or not self._is_logged(trainer, metrics):
            return
        before = self._best
        verdict = self._judge(float(metrics[self.monitor]))
        if verdict is None:
            if self.verbose and trainer.is_global_zero and self._best != before:
                logger.info("%s improved to %.6g.", self.monitor, self._best)
            return
        self.stopping_reason, self.stopping_reason_message = verdict
        self.stopped_epoch = trainer.current_epoch
        trainer.should_stop = True
        if trainer.is_global_zero:
            logger.info("Stopping: %s.", self.stopping_reason_message)

    def _is_logged(self, trainer: Trainer, metrics: dict[str, torch.Tensor]) -> bool:
        if self.monitor in metrics:
            return True
        message = (
            f"EarlyStopping monitors {self.monitor!r}, which nobody logged.{nearest(self.monitor, metrics)} "
            f"Logged: {', '.join(metrics) or 'nothing'}."
        )
        if self.strict:
            raise ConfigError(message)
        if self.verbose and trainer.is_global_zero:
            logger.warning(message)
        return False

    def _judge(self, value: float) -> tuple[EarlyStoppingReason, str] | None:
        """Return why to stop, or None."""
        name = self.monitor
        if self.check_finite and not math.isfinite(value):
            return EarlyStoppingReason.NON_FINITE_METRIC, f"{name} is {value}"
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            message = f"{name}={value:.6g} is better than {self.stopping_threshold}"
            return EarlyStoppingReason.STOPPING_THRESHOLD, message
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            message = f"{name}={value:.6g} is worse than {self.divergence_threshold}"
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, message
        if self._better(value, self._best, self.min_delta):
            self._best, self.wait_count = value, 0
            return None
        self.wait_count += 1
        if self.wait_count >= self.patience:
            message = f"{name} did not improve on {self._best:.6g} for {self.wait_count} checks"
            return EarlyStoppingReason.PATIENCE_EXHAUSTED, message
        return None

    def _better(self, value: float, than: float, by: float = 0.0) -> bool:
        return value < than - by if self.mode == "min" else value > than + by
