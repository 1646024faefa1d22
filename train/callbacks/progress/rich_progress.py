"""Progress bars by rich."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from shipline.errors import ConfigError
from shipline.train.callbacks.progress.progress_bar import Bar, ProgressBar, text_of

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


@dataclass
class RichProgressBarTheme:
    """Rich's styles for the parts of a bar, and how metrics are written."""

    description: str = ""
    progress_bar: str = "bar.complete"
    progress_bar_finished: str = "bar.finished"
    progress_bar_pulse: str = "bar.pulse"
    batch_progress: str = "progress.download"
    time: str = "progress.remaining"
    processing_speed: str = "progress.data.speed"
    metrics: str = ""
    metrics_text_delimiter: str = "  "
    metrics_format: str = ".4g"


class RichProgressBar(ProgressBar):
    """Draws bars in a terminal, through rich, on the error output; elsewhere it leaves a line for each epoch.

    Args:
        refresh_rate: drawings a second, 10 at most; 0 shows nothing at all.
        leave: let the bar of each epoch stay, in place of the line.
        theme: styles of the parts.
        console_kwargs: arguments of `rich.console.Console`.
    """

    def __init__(
        self,
        refresh_rate: int = 10,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if refresh_rate < 0:
            raise ConfigError(f"RichProgressBar has refresh_rate={refresh_rate!r}; set drawings a second, from 0 on.")
        self.refresh_rate = refresh_rate
        self.leaves = leave
        self.theme = theme or RichProgressBarTheme()
        self.progress: Progress | None = None
        self._console_kwargs = {"stderr": True} | (console_kwargs or {})
        self._tasks: dict[str, TaskID] = {}
        self._pause = 1 / refresh_rate if refresh_rate else math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "progress": None, "_tasks": {}}

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return super().is_enabled and self.refresh_rate > 0

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return rich's columns; metrics follow."""
        theme = self.theme
        return [
            TextColumn("{task.description}", style=theme.description, markup=False),
            BarColumn(
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            _Column(_batches, theme.batch_progress),
            _Column(_times, theme.time),
            _Column(lambda task: f"{task.speed or 0:.2f}it/s", theme.processing_speed),
        ]

    def can_draw(self) -> bool:
        """Whether rich finds a terminal."""
        return Console(**self._console_kwargs).is_terminal

    def draw(self, bars: Iterable[Bar]) -> None:
        """Show the bars."""
        progress = self.progress or self._begin_drawing()
        for bar in bars:
            total = None if math.isinf(bar.total) else int(bar.total)
            if bar.kind not in self._tasks:
                self._tasks[bar.kind] = progress.add_task(bar.description, total=total, metrics="")
            progress.update(self._tasks[bar.kind], completed=bar.done, metrics=self._metrics(bar))
        progress.refresh()

    def remove(self, kind: str) -> None:
        """Take the bar away with the next drawing; where it is to stay, leave it as it is, and begin anew below it."""
        if self.progress is None or kind not in self._tasks:
            return
        if self.leaves and kind != "sanity" and len(self._tasks) == 1:
            self.stop()
        else:
            self.progress.remove_task(self._tasks.pop(kind))

    def stop(self) -> None:
        """Give the terminal back."""
        progress, self.progress, self._tasks = self.progress, None, {}
        if progress is not None:
            progress.stop()

    def _begin_drawing(self) -> Progress:
        metrics = TextColumn("{task.fields[metrics]}", style=self.theme.metrics, markup=False)
        self.progress = Progress(
            *self.configure_columns(self.trainer), metrics,
            console=Console(**self._console_kwargs),
            auto_refresh=False,
            transient=not self.leaves,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file must not come here instead
        )  # fmt: skip
        self.progress.start()
        return self.progress

    def _metrics(self, bar: Bar) -> str:
        if bar.kind != "train":
            return ""
        theme, trainer = self.theme, self.trainer
        return text_of(self.get_metrics(trainer, trainer.module), theme.metrics_format, theme.metrics_text_delimiter)


class _Column(ProgressColumn):
    """Text about a bar."""

    def __init__(self, text: Callable[[Task], str], style: str) -> None:
        super().__init__()
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        """Return the text in its style."""
        return Text(self._text(task), style=self._style)


def _batches(task: Task) -> str:
    return f"{int(task.completed)}/{'--' if task.total is None else int(task.total)}"


def _times(task: Task) -> str:
    return " • ".join(
        "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
        for seconds in (task.elapsed, task.time_remaining)
    )
