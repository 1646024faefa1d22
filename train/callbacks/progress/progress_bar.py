"""Progress for people: what every bar has in common, and a line for each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from shipline.errors import TrainingError
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

#: Seconds between two drawings.
REFRESH_S = 0.1


@dataclass
class Bar:
    """How far a kind of batches is: those to "train", of the "sanity" check, "validation", "test" or "predict"."""

    kind: str
    description: str
    total: float
    done: int = 0


class ProgressBar(Callback):
    """Leaves a line for each epoch: its number, the metrics logged with `prog_bar=True`, the seconds. It draws no bar.

    A class that does overrides `can_draw`, `draw`, `remove` and `stop`; when to draw is decided here.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._enabled = True
        self._draws = False
        self._every = 1  # batches between two drawings ...
        self._pause = 0.0  # ... and seconds, where they are more than REFRESH_S
        self._next_drawing = 0.0
        self._epoch_began = 0.0
        self._bars: dict[str, Bar] = {}
        self._evaluation = ""  # the kind of batches that are evaluated
        self._current_eval_dataloader_idx: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "_bars": {}, "_draws": False}

    # ---- what a bar that is drawn overrides --------------------------------------------------------------------------

    #: Whether finished bars stay on the screen.
    leaves = False

    def can_draw(self) -> bool:
        """Whether there is a terminal to draw on."""
        return False

    def draw(self, bars: Iterable[Bar]) -> None:
        """Show the bars as they are now."""

    def remove(self, kind: str) -> None:
        """Take a bar off the screen, or leave it there as it is; it may not have been drawn."""

    def stop(self) -> None:
        """Remove all bars, and give the terminal back."""

    # ---- Lightning's names -------------------------------------------------------------------------------------------

    sanity_check_description = "Sanity checking"
    train_description = "Training"
    validation_description = "Validation"
    test_description = "Testing"
    predict_description = "Predicting"

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs; TrainingError outside of a run."""
        if self._trainer is None:
            raise TrainingError(f"{type(self).__name__} has no trainer outside of a run.")
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """Whether it shows nothing."""
        return not self.is_enabled

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    @property
    def total_train_batches(self) -> float:
        """How many batches an epoch has; infinity where nobody knows."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches(self) -> float:
        """How many batches a validation has, over all loaders."""
        return sum(self.trainer.num_val_batches)

    @property
    def total_val_batches_current_dataloader(self) -> float:
        """How many batches this worker takes of the loader that is evaluated; infinity where nobody knows."""
        trainer = self.trainer
        few = trainer.num_sanity_val_steps if trainer.sanity_checking and trainer.num_sanity_val_steps != -1 else None
        batches = trainer.sources[self._current_eval_dataloader_idx or 0].own_batches(few)
        return math.inf if batches is None else batches

    total_test_batches_current_dataloader = total_val_batches_current_dataloader
    total_predict_batches_current_dataloader = total_val_batches_current_dataloader

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether this loader is another one than at the last call."""
        before, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Say that no loader is evaluated."""
        self._current_eval_dataloader_idx = None

    def get_metrics(self, trainer: Trainer, module: Module) -> dict[str, Any]:
        """Return what is shown beside the bar; override it to change that."""
        versions = list(dict.fromkeys(str(each.version) for each in trainer.loggers if each.version not in (None, "")))
        return ({"v_num": "_".join(versions)[-4:]} if versions else {}) | trainer.progress_bar_metrics

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        print(*args, **kwargs)  # noqa: T201

    def print_results(self, stage: str, results: list[dict[str, float]]) -> None:
        """Print the metrics of a validation or a test, a column for each loader."""
        table = Table(title=stage)
        table.add_column("metric", overflow="fold")
        for index in range(len(results)):
            table.add_column(f"loader {index}" if len(results) > 1 else "value")
        for name in dict.fromkeys(name for found in results for name in found):
            table.add_row(name, *(f"{found[name]:.6g}" if name in found else "" for found in results))
        if table.row_count and self.is_enabled:
            Console(markup=False).print(table)

    # ---- training ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Find out whether to draw: on the first worker, in a terminal."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()
        self._draws = self.is_enabled and self.can_draw()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Begin the bar where a resumed run is in the middle of an epoch."""
        if trainer.progress.phase != "begin":
            self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Begin the epoch's bar."""
        self._begin_epoch(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar on, ten times a second at most."""
        if self._draws and time.monotonic() >= self._next_drawing and (batch_idx + 1) % self._every == 0:
            self._bars["train"].done = batch_idx + 1
            self._draw()

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Leave a line for the epoch, or its bar."""
        if (bar := self._bars.get("train")) is not None:
            bar.done = trainer.progress.batches
            self._draw_if_due(self.leaves)
            self._remove("train")
        if self.is_enabled and not (self._draws and self.leaves):
            seconds = time.monotonic() - self._epoch_began
            self.print(f"epoch {_epoch(trainer)}  {text_of(self.get_metrics(trainer, module))}  {seconds:.1f} s")

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Give the terminal back."""
        self._stop()

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Give the terminal back."""
        self._stop()
        self._trainer = None

    # ---- validation, test, prediction --------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Begin a bar."""
        if "train" in self._bars:
            self._bars["train"].done = trainer.progress.batches
        self._begin_evaluation("sanity" if trainer.sanity_checking else "validation")

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Move the bar on."""
        self._evaluated(trainer, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """End the bar."""
        self._end_evaluation()

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Begin a bar."""
        self._begin_evaluation("test")

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Move the bar on."""
        self._evaluated(trainer, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """End the bar."""
        self._end_evaluation()

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Begin a bar."""
        self._begin_evaluation("predict")

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Move the bar on."""
        self._evaluated(trainer, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """End the bar."""
        self._end_evaluation()

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _begin_epoch(self, trainer: Trainer) -> None:
        self._epoch_began = time.monotonic()
        self._begin(Bar("train", f"epoch {_epoch(trainer)}", self.total_train_batches))

    def _begin_evaluation(self, kind: str, loader: int = 0) -> None:
        self._evaluation, self._current_eval_dataloader_idx = kind, loader
        if self._draws:
            description = getattr(self, f"{kind}_check_description" if kind == "sanity" else f"{kind}_description")
            number = f" loader {loader}" if len(self.trainer.sources) > 1 else ""
            self._begin(Bar(kind, f"{description}{number}", self.total_val_batches_current_dataloader))

    def _evaluated(self, trainer: Trainer, batch_idx: int, loader: int) -> None:
        if not self._draws:
            return
        if self.has_dataloader_changed(loader):
            self._remove(self._evaluation)
            self._begin_evaluation(self._evaluation, loader)
        own = batch_idx // trainer.sources[loader].every + 1  # batches are numbered over all workers
        self._bars[self._evaluation].done = own
        if own % self._every == 0:
            self._draw_if_due()

    def _end_evaluation(self) -> None:
        if self._draws:
            self._draw_if_due(self.leaves)
            self._remove(self._evaluation)
        self.reset_dataloader_idx_tracker()

    def _begin(self, bar: Bar) -> None:
        if self._draws:
            self._bars[bar.kind] = bar
            self._draw_if_due()

    def _draw_if_due(self, at_once: bool = False) -> None:
        if at_once or time.monotonic() >= self._next_drawing:
            self._draw()

    def _draw(self) -> None:
        self._next_drawing = time.monotonic() + max(self._pause, REFRESH_S)
        self.draw(self._bars.values())

    def _remove(self, kind: str) -> None:
        self._bars.pop(kind, None)
        self.remove(kind)

    def _stop(self) -> None:
        self._bars = {}
        if self._draws:
            self.stop()


def text_of(metrics: dict[str, Any], form: str = ".4g", between: str = "  ") -> str:
    """Return names and values in a line."""
    values = {name: format(value, form) if isinstance(value, float) else value for name, value in metrics.items()}
    return between.join(f"{name} {value}" for name, value in values.items())


def _epoch(trainer: Trainer) -> str:
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}" if known else str(trainer.current_epoch + 1)
