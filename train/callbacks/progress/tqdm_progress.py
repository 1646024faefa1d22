"""Progress bars by tqdm."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from shipline.errors import ConfigError, MissingExtraError, TrainingError
from shipline.train.callbacks.progress.progress_bar import Bar, ProgressBar


class TQDMProgressBar(ProgressBar):
    """Draws bars in a terminal, through tqdm, on the error output; elsewhere it leaves a line for each epoch.

    Override `init_train_tqdm` and its like to change a bar.

    Args:
        refresh_rate: batches between two drawings, which are ten a second at most; 0 shows nothing at all.
        process_position: lines to leave free above the bars, two for each.
        leave: let the bar of each epoch stay, in place of the line.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__()
        for name, value in (("refresh_rate", refresh_rate), ("process_position", process_position)):
            if value < 0:
                raise ConfigError(f"TQDMProgressBar has {name}={value!r}; set a whole number from 0 on.")
        self.refresh_rate = refresh_rate
        self.process_position = process_position
        self.leaves = leave
        self._every = max(1, refresh_rate)
        self._drawn: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_drawn": {}}

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return super().is_enabled and self.refresh_rate > 0

    # ---- the bars, by Lightning's names ------------------------------------------------------------------------------

    @property
    def train_progress_bar(self) -> Any:
        """The bar of training."""
        return self._bar("train")

    @property
    def val_progress_bar(self) -> Any:
        """The bar of the validation, or of the sanity check."""
        return self._bar("validation", "sanity")

    @property
    def test_progress_bar(self) -> Any:
        """The bar of the test."""
        return self._bar("test")

    @property
    def predict_progress_bar(self) -> Any:
        """The bar of the prediction."""
        return self._bar("predict")

    def init_train_tqdm(self) -> Any:
        """Return a bar for an epoch of training."""
        return self._new(self.train_description, leave=self.leaves)

    def init_sanity_tqdm(self) -> Any:
        """Return a bar for the few validation batches that are tried before training."""
        return self._new(self.sanity_check_description, leave=False)

    def init_validation_tqdm(self) -> Any:
        """Return a bar for a validation; within a fit it stands below that of training."""
        within = "train" in self._drawn
        return self._new(self.validation_description, leave=self.leaves and not within, below=int(within))

    def init_test_tqdm(self) -> Any:
        """Return a bar for a test."""
        return self._new(self.test_description, leave=self.leaves)

    def init_predict_tqdm(self) -> Any:
        """Return a bar for a prediction."""
        return self._new(self.predict_description, leave=self.leaves)

    def _new(self, description: str, *, leave: bool, below: int = 0) -> Any:
        return _tqdm()(
            desc=description,
            position=2 * self.process_position + below,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def _bar(self, *kinds: str) -> Any:
        for kind in kinds:
            if kind in self._drawn:
                return self._drawn[kind]
        raise TrainingError(f"TQDMProgressBar has no bar for {kinds[0]} at the moment.")

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def can_draw(self) -> bool:
        """Whether the error output is a terminal; tqdm is looked for now, and not in the middle of an epoch."""
        return sys.stderr.isatty() and _tqdm() is not None

    def draw(self, bars: Iterable[Bar]) -> None:
        """Show the bars."""
        for bar in bars:
            if bar.kind not in self._drawn:
                self._drawn[bar.kind] = getattr(self, f"init_{bar.kind}_tqdm")()
            drawn = self._drawn[bar.kind]
            drawn.total = None if math.isinf(bar.total) else int(bar.total)
            drawn.n = bar.done
            drawn.set_description(bar.description, refresh=False)
            if bar.kind == "train":
                drawn.set_postfix(self.get_metrics(self.trainer, self.trainer.module), refresh=False)
            drawn.refresh()

    def remove(self, kind: str) -> None:
        """Take the bar away, or leave it as it is."""
        if (drawn := self._drawn.pop(kind, None)) is not None:
            drawn.close()

    def stop(self) -> None:
        """Take all bars away."""
        for kind in list(self._drawn):
            self.remove(kind)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars."""
        if not self._drawn:
            super().print(*args, **kwargs)
            return
        with _tqdm().external_write_mode(file=kwargs.get("file") or sys.stdout):
            super().print(*args, **kwargs)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise MissingExtraError("TQDMProgressBar needs tqdm. Run: pip install 'shipline[train]'") from error
    return tqdm
