"""How far a fit is: what is counted, and at which of the points it stands where a checkpoint may be made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

#: What has been done last. A resumed fit goes on with what comes after it:
#: "begin" before an epoch; "batch" a batch, whose validation may be due; "validated" that validation;
#: "ready" all that follows a batch; "end" the end of an epoch, but for schedulers that wait for its metrics.
Phase = Literal["begin", "batch", "validated", "ready", "end"]


@dataclass
class Progress:
    """Counters of a fit."""

    phase: Phase = "begin"
    current_epoch: int = 0
    epochs_done: int = 0
    batches: int = 0  # done in this epoch
    last: bool = False  # whether the batch done last was the epoch's last
    begun_last: bool = False  # whether the batch begun last is: what its hooks and its step may ask
    all_batches: int = 0  # done in all epochs
    global_step: int = 0  # steps of optimizers
    stepped_batches: int = 0  # batches after which optimizers stepped: the axis of loggers
    validation_loaders_of: int = 0  # the epoch that asked for them
    validation_batches: int = 0  # the axis of what validation steps log

    def begin_epoch(self) -> None:
        """Count an epoch as begun."""
        self.current_epoch, self.batches = self.epochs_done, 0
        self.last = self.begun_last = False

    def count_batch(self, last: bool) -> None:
        """Count a batch as done."""
        self.batches += 1
        self.all_batches += 1
        self.last = last
        self.phase = "batch"

    def count_step(self) -> None:
        """Count a step of an optimizer."""
        self.global_step += 1

    def first_unlogged(self) -> int:
        """Return the first step of loggers' axis that has not been logged yet."""
        return self.stepped_batches + (self.phase in ("batch", "validated", "end"))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up counters of `state_dict`."""
        self.__dict__.update(state)
