"""Progress for people: a bar in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from shipline.train.callbacks.base import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

REFRESH_S = 0.1


class ProgressBar(Callback):
    """Shows the epoch, the batches and the metrics logged with `prog_bar=True`."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._next_refresh = 0.0
        self._epoch_began = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_progress": None}

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Begin the epoch's bar."""
        self._epoch_began = time.monotonic()
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"), console=console, auto_refresh=False, transient=True,
        )  # fmt: skip
        self._progress.start()
        total = None if trainer.num_training_batches == math.inf else int(trainer.num_training_batches)
        self._task = self._progress.add_task("", total=total, epoch=self._epoch(trainer), metrics="")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar on, ten times a second at most."""
        if self._progress is None or (now := time.monotonic()) < self._next_refresh:
            return
        self._next_refresh = now + REFRESH_S
        self._progress.update(self._task, completed=batch_idx + 1, metrics=_shown(trainer), refresh=True)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Leave a line for the epoch."""
        self._stop()
        if trainer.is_global_zero:
            seconds = time.monotonic() - self._epoch_began
            print(f"epoch {self._epoch(trainer)}  {_shown(trainer)}  {seconds:.1f} s", flush=True)  # noqa: T201

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._progress is not None:
            self._progress.console.print(*args, **kwargs)
        else:
            print(*args, **kwargs)  # noqa: T201

    def print_results(self, stage: str, results: list[dict[str, float]]) -> None:
        """Print the metrics of a validation or a test, a column for each loader."""
        table = Table(title=stage)
        table.add_column("metric")
        for index in range(len(results)):
            table.add_column(f"loader {index}" if len(results) > 1 else "value")
        for name in dict.fromkeys(name for found in results for name in found):
            table.add_row(name, *(f"{found[name]:.6g}" if name in found else "" for found in results))
        if table.row_count:
            Console().print(table)

    @staticmethod
    def _epoch(trainer: Trainer) -> str:
        return (
            f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            if trainer.max_epochs
            else str(trainer.current_epoch + 1)
        )


def _shown(trainer: Trainer) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
