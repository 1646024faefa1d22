"""Stop when the loss jumps."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from shipline.errors import ConfigError, TrainingError
from shipline.store import absolute, join, open_store, split
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

FILE = "skip_batches.json"


class TrainingSpikeException(TrainingError):  # noqa: N818 -- Lightning's name
    """The loss jumped."""


class SpikeDetection(Callback):
    """Ends a run whose loss jumps away from its running mean, and writes down which batches to leave out next time.

    These are the batch with the jump and the one before it, which may have spoilt the weights. A batch that is better
    than the one before is no spike. On several workers all end as soon as one sees a spike.

    Args:
        mode: "min" or "max" of the loss is better.
        window: batches that the running mean is taken over.
        warmup: batches at the beginning of an epoch that are not looked at.
        atol: the least difference from the running mean that is a spike; default: any.
        rtol: the same, as a multiple of the running mean.
        exclude_batches_path: URL of a directory, or of a `.json` file, for the numbers of the batches; default: the
            run's directory.
        finite_only: a loss that is NaN or infinite is a spike.

    Attributes:
        bad_batches: the numbers of the batches to leave out.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"SpikeDetection has mode={mode!r}; choose 'min' or 'max'.")
        if window < 1 or warmup < 0:
            raise ConfigError(f"SpikeDetection has window={window}, warmup={warmup}; set them from 1 and 0 on.")
        self.mode = mode
        self.window = window
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = None if exclude_batches_path is None else absolute(str(exclude_batches_path))
        self.finite_only = finite_only
        self._begin()

    def _begin(self) -> None:
        self.bad_batches: list[int] = []
        self.last_val = 0.0
        self._recent: deque[float] = deque(maxlen=self.window)

    def state_dict(self) -> dict[str, Any]:
        """Return the recent losses, and the batches to leave out."""
        return {"last_val": self.last_val, "recent": list(self._recent), "bad_batches": list(self.bad_batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the recent losses, and the batches to leave out."""
        self.last_val, self.bad_batches = state["last_val"], list(state["bad_batches"])
        self._recent = deque(state["recent"], maxlen=self.window)

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the loss.

        Raises:
            TrainingSpikeException: it is a spike, here or on another worker.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        value = math.nan if loss is None else float(loss)
        spike = loss is not None and batch_idx >= self.warmup and self._is_spike(value)
        if trainer.strategy.reduce_boolean_decision(spike, all=False):
            self._end(trainer, batch_idx, value)
        if math.isfinite(value):
            self._recent.append(value)
            self.last_val = value

    def _is_spike(self, value: float) -> bool:
        if self.finite_only and not math.isfinite(value):
            return True
        better = value <= self.last_val if self.mode == "min" else value >= self.last_val
        if better or not self._recent:
            return False
        mean = math.fsum(self._recent) / len(self._recent)
        far = self.atol is None or abs(value - mean) >= abs(self.atol)
        return far and (self.rtol is None or abs(value - mean) >= abs(self.rtol * mean))

    def _end(self, trainer: Trainer, batch_idx: int, value: float) -> None:
        self.bad_batches += range(max(batch_idx - 1, 0), batch_idx + 1)
        where = self._file(trainer)
        if trainer.is_global_zero:
            parent, name = split(where)
            open_store(parent).write(name, json.dumps(self.bad_batches).encode())
        raise TrainingSpikeException(
            f"The loss jumped to {value:.6g} (epoch {trainer.current_epoch}, batch {batch_idx}, step "
            f"{trainer.global_step}). Look at it and the one before, which {open_store(where)} lists. Leave them out, "
            "lower the learning rate or clip gradients, and resume with ckpt_path='last'."
        )

    def _file(self, trainer: Trainer) -> str:
        where = self.exclude_batches_path
        if where is None:
            run = trainer.run_directory
            where = trainer.default_root_dir if run is None else run.store.url
        return where if where.endswith(".json") else join(where, FILE)
