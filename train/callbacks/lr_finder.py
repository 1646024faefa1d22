"""Which learning rate to begin with: a few steps at ever higher ones, as if they had never been made.

Source: Cyclical Learning Rates for Training Neural Networks (https://arxiv.org/abs/1506.01186), section 3.3.
"""

from __future__ import annotations

import io
import json
import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError
from shipline.plugins import missing_extra
from shipline.train.callbacks.callback import Callback
from shipline.train.loops.fit import make_optimizers
from shipline.train.seed import isolate_rng
from shipline.train.trials.attribute import set_value, tuned_attribute
from shipline.train.trials.trial import train_steps, trial

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_MODES = ("exponential", "linear")
_SMOOTHING = 0.98
PLOT_FILE = "plots/lr_finder.png"
RESULTS_FILE = "plots/lr_finder.json"


class LRFinder:
    """What was found.

    Attributes:
        results: the learning rates tried ("lr") and the smoothed loss at each ("loss").
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the learning rate at which the loss falls fastest; None where too few were tried.

        Args:
            skip_begin: leave out so many at the beginning ...
            skip_end: ... and so many at the end.
        """
        index = self._steepest(skip_begin, skip_end)
        return None if index is None else self.results["lr"][index]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Return a figure of the loss over the learning rate.

        Args:
            suggest: mark the suggestion.
            show: open a window.
            ax: matplotlib axes to draw on; default: a new figure's.
        """
        figure = _new_figure(show) if ax is None else ax.figure
        ax = figure.subplots() if ax is None else ax
        rates, losses = self.results["lr"], self.results["loss"]
        ax.plot(rates, losses)
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        if suggest and (index := self._steepest()) is not None:
            ax.plot(rates[index], losses[index], markersize=10, marker="o", color="red")
        if show:
            import matplotlib.pyplot as plt

            plt.show()
        return figure

    def _steepest(self, skip_begin: int = 10, skip_end: int = 1) -> int | None:
        losses, end = self.results["loss"], len(self.results["loss"]) - skip_end
        kept = [index for index in range(skip_begin, end) if math.isfinite(losses[index])]
        if len(kept) < 2:
            return None
        rates = torch.tensor([self.results["lr"][index] for index in kept])
        [slopes] = torch.gradient(torch.tensor([losses[index] for index in kept]), spacing=[rates])
        return kept[int(slopes.argmin())]


class LearningRateFinder(Callback):
    """Tries learning rates before training begins, and lets it begin with the one at which the loss falls fastest.

    Module, optimizer, generators, loaders and counters are afterwards as they were before. What was tried is in the
    run's directory: `plots/lr_finder.png` and `.json`. A resumed run keeps what was found.

    Args:
        min_lr: the first learning rate.
        max_lr: the last.
        num_training_steps: how many to try, an optimizer step each.
        mode: "exponential" or "linear": how they grow.
        early_stop_threshold: stop where the loss is so many times the best so far; None: never.
        update_attr: set the module's attribute, and the optimizer, to what was found.
        attr_name: of that attribute; default: `lr` or `learning_rate`.
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        if mode not in _MODES:
            raise ConfigError(f"LearningRateFinder has mode={mode!r}; choose 'exponential' or 'linear'.")
        if not 0 < min_lr < max_lr:
            raise ConfigError(f"LearningRateFinder has min_lr={min_lr} and max_lr={max_lr}; set 0 < min_lr < max_lr.")
        if num_training_steps < 1:
            raise ConfigError(f"LearningRateFinder has num_training_steps={num_training_steps}; set 1 or more.")
        self._min_lr = min_lr
        self._max_lr = max_lr
        self._num_training_steps = num_training_steps
        self._mode = mode
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self.optimal_lr: LRFinder | None = None
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"results": None if self.optimal_lr is None else self.optimal_lr.results}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was found, so that it is not searched for again."""
        if state["results"] is not None:
            self.optimal_lr, self._resumed = self._empty(), True
            self.optimal_lr.results = state["results"]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin with nothing found; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self.optimal_lr, self._resumed = None, False

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Search, unless the run goes on with what it found before."""
        if not self._resumed:
            self.lr_find(trainer, module)
        elif self._update_attr and self.optimal_lr is not None and (lr := self.optimal_lr.suggestion()) is not None:
            set_value(trainer, self._attribute(trainer), lr)  # optimizer and schedulers are back already

    def lr_find(self, trainer: Trainer, module: Module) -> None:
        """Search now. A subclass may call it at the start of an epoch, too.

        Raises:
            ConfigError: the module has no attribute for the learning rate, or several optimizers.
        """
        if trainer.fast_dev_run:
            logger.info("fast_dev_run tries a few batches only: no learning rate is searched for.")
            return
        name = self._attribute(trainer) if self._update_attr else None
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"LearningRateFinder works with one optimizer, and {type(module).__name__} has "
                f"{len(trainer.optimizers)}: set their learning rates yourself."
            )
        search = _Search(trainer, self._rate, self._early_stop_threshold)
        with trial(trainer, [search], nonfinite_loss="ignore") as other:
            train_steps(other, self._num_training_steps)
        self.optimal_lr = self._empty()
        self.optimal_lr.results = {"lr": search.rates, "loss": search.losses}
        self._write(trainer)
        lr = self.optimal_lr.suggestion()
        if lr is None:
            logger.warning(
                "%d learning rates were tried, too few to suggest one: raise num_training_steps.", len(search.rates)
            )
        elif name is not None:
            logger.info("The learning rate is set to %.6g.", lr)
            self._use(trainer, name, lr)

    def _empty(self) -> LRFinder:
        return LRFinder(self._mode, self._min_lr, self._max_lr, self._num_training_steps)

    def _attribute(self, trainer: Trainer) -> str:
        names = (self._attr_name,) if self._attr_name else ("lr", "learning_rate")
        return tuned_attribute(trainer, names, "attr_name")

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0; the second one is left out, as in Lightning."""
        share = (step + 1) / self._num_training_steps if step else 0.0
        if self._mode == "linear":
            return self._min_lr + share * (self._max_lr - self._min_lr)
        return float(self._min_lr * (self._max_lr / self._min_lr) ** share)

    def _use(self, trainer: Trainer, name: str, lr: float) -> None:
        set_value(trainer, name, lr)
        if trainer.progress.all_batches:
            for group in trainer.optimizers[0].param_groups:
                _set_rate(group, lr)
            return
        with isolate_rng():  # nothing was trained: schedulers, too, begin with what was found
            make_optimizers(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Keep what was tried in the run's directory, where there is one."""
        assert self.optimal_lr is not None
        if trainer.run_directory is None or not trainer.is_global_zero:
            return
        store, found = trainer.run_directory.store, self.optimal_lr
        results = {name: [v if math.isfinite(v) else None for v in values] for name, values in found.results.items()}
        content = {"mode": found.mode, "suggestion": found.suggestion(), **results}
        store.write(RESULTS_FILE, json.dumps(content, indent=1).encode())
        try:
            figure, image = found.plot(suggest=True), io.BytesIO()
        except ImportError as error:
            logger.info("The plot of the learning rates is left out. %s", error)
            return
        figure.savefig(image, format="png")
        store.write(PLOT_FILE, image.getvalue())


class _Search(Callback):
    """Sets the learning rate before each step and takes the loss after it."""

    def __init__(self, run: Trainer, rate: Any, threshold: float | None) -> None:
        self._run = run
        self._rate = rate
        self._threshold = threshold
        self._average = self._best = 0.0
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            _set_rate(group, self._rate(len(self.losses)))

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.rates.append(self._rate(len(self.losses)))
        loss = outputs.get("loss")
        if loss is None:
            self.losses.append(math.nan)
        else:
            self._add(trainer, float(trainer.strategy.reduce(loss)))
        if self._run.signals.received:  # what is to be done about it, the run itself knows
            trainer.should_stop = True
        trainer.agree()

    def _add(self, trainer: Trainer, loss: float) -> None:
        """Take a loss, smoothed over those before it; far above the best so far it ends the search."""
        step = len(self.losses) + 1
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** (step + 1))
        if self._threshold is not None and step > 1 and smoothed > self._threshold * self._best:
            trainer.should_stop = True
        if step == 1 or smoothed < self._best:
            self._best = smoothed
        self.losses.append(smoothed)


def _set_rate(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _new_figure(show: bool) -> Any:
    try:
        if show:
            import matplotlib.pyplot as plt

            return plt.figure()
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    return Figure()
