"""The mean of the weights of the last epochs.

Source: Averaging Weights Leads to Wider Optima and Better Generalization (https://arxiv.org/abs/1803.05407).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback
from shipline.train.loops import evaluation
from shipline.train.loops.schedules import Schedule
from shipline.train.seed import set_rng_state
from shipline.train.strategies import step_of
from shipline.train.trials.trial import same_generators, trial

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

#: An epoch, or a share of them.
Start = int | float
AverageFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class StochasticWeightAveraging(Callback):
    """Averages the weights that the last epochs begin with, at a learning rate of its own, and ends with the average.

    When training ends, the module has the averaged weights; a pass over the training data gives its batch norm layers
    the statistics of these; they are validated, and offered to every ModelCheckpoint. A run that is resumed from that
    checkpoint, or any other, goes on with the weights that it trains.

    Args:
        swa_lrs: the learning rate to go to, or one for each parameter group.
        swa_epoch_start: the epoch to begin in, counted from 1, or its share of all epochs.
        annealing_epochs: epochs that the learning rate takes to get there.
        annealing_strategy: "cos" or "linear": how it gets there.
        avg_fn: of the average, a new weight, and how many were averaged, makes the new average; default: the mean.
        device: where the average is kept; None: where the module is.
    """

    needs_whole_weights = True

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: Start = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: AverageFunction | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(isinstance(lr, float) and lr > 0 for lr in rates):
            raise ConfigError(
                f"StochasticWeightAveraging has swa_lrs={swa_lrs!r}; set a float above 0, or a list of them."
            )
        share = isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1
        if not share and not (isinstance(swa_epoch_start, int) and swa_epoch_start >= 1):
            raise ConfigError(
                f"StochasticWeightAveraging has swa_epoch_start={swa_epoch_start!r}; set a whole number from 1 on, or "
                "a share of the epochs: a float up to 1.0."
            )
        if annealing_strategy not in ("cos", "linear"):
            raise ConfigError(
                f"StochasticWeightAveraging has annealing_strategy={annealing_strategy!r}; choose 'cos' or 'linear'."
            )
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy: Literal["cos", "linear"] = annealing_strategy
        self._avg_fn = avg_fn or self.avg_fn
        self._device = None if device is None else torch.device(device)
        self._begin()

    def _begin(self) -> None:
        self.n_averaged = 0
        self._started = False
        self._latest_update_epoch = -1
        self._average: dict[str, torch.Tensor] = {}
        self._own: dict[str, torch.Tensor] = {}  # what was trained, while the module has the average
        self._finished: dict[str, torch.Tensor] = {}  # the weights of a checkpoint that was made at the end

    @staticmethod
    def avg_fn(average: torch.Tensor, weight: torch.Tensor, num_averaged: torch.Tensor) -> torch.Tensor:
        """Return the mean, with one weight more."""
        return average + (weight - average) / (num_averaged + 1)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and how far it is."""
        return {
            "n_averaged": self.n_averaged,
            "started": self._started,
            "latest_update_epoch": self._latest_update_epoch,
            "average_model_state": self._average,
            "own": self._own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the average; what was trained goes on being trained."""
        self.n_averaged, self._started = state["n_averaged"], state["started"]
        self._latest_update_epoch = state["latest_update_epoch"]
        self._average = state["average_model_state"]

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Go back to the run's scheduler, before its state is put back, and to the weights that it trained."""
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            return
        if state["started"]:
            self._take_over(trainer)
        if state["own"]:
            self._finished = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **state["own"]}

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Keep nothing of the module's size."""
        self._average, self._own, self._finished = {}, {}, {}

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Refuse what cannot be averaged.

        Raises:
            ConfigError: several optimizers or schedulers; or a share of an unknown number of epochs.
        """
        if len(trainer.optimizers) != 1 or len(trainer.schedules) > 1:
            raise ConfigError(
                "StochasticWeightAveraging works with one optimizer and at most one scheduler, and "
                f"{type(module).__name__} has {len(trainer.optimizers)} and {len(trainer.schedules)}."
            )
        if isinstance(self._swa_epoch_start, float) and trainer.max_epochs in (None, -1):
            raise ConfigError(
                f"StochasticWeightAveraging has swa_epoch_start={self._swa_epoch_start}, a share of the epochs, and "
                "the Trainer has no max_epochs: set one of them to a whole number."
            )
        if not module.automatic_optimization and any(_batch_norms(module)):
            raise ConfigError(
                "StochasticWeightAveraging runs training steps without training, for the statistics of batch norm, and "
                f"{type(module).__name__} steps its optimizer itself: use group or layer norm."
            )

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Add the weights to the average, where it is time; first of all change the scheduler."""
        self._finished = {}
        epoch = trainer.current_epoch
        if not self._first(trainer) <= epoch <= self._last(trainer):
            return
        if not self._started:
            self._started = True
            self._take_over(trainer)
        if epoch > self._latest_update_epoch:
            self._update(module)
            self._latest_update_epoch = epoch

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Let the module have the average."""
        self._finish(trainer, module)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """The same where there was nothing left to train: a run that has ended already was resumed."""
        if self._finished:
            module.load_state_dict(self._finished)
        elif not self._own:
            self._finish(trainer, module)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _first(self, trainer: Trainer) -> int:
        start = self._swa_epoch_start
        if isinstance(start, float):
            assert trainer.max_epochs is not None
            start = int(trainer.max_epochs * start)
        return max(start - 1, 0)

    def _last(self, trainer: Trainer) -> float:
        return math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0) - 1

    def _take_over(self, trainer: Trainer) -> None:
        """Put our scheduler in the place of the module's."""
        [optimizer] = trainer.optimizers
        rates = self._swa_lrs if isinstance(self._swa_lrs, list) else [self._swa_lrs] * len(optimizer.param_groups)
        if len(rates) != len(optimizer.param_groups):
            raise ConfigError(
                f"StochasticWeightAveraging has {len(rates)} swa_lrs, and the optimizer has "
                f"{len(optimizer.param_groups)} parameter groups: set one for each, or one for all."
            )
        for lr, group in zip(rates, optimizer.param_groups, strict=True):
            group["initial_lr"] = lr
        last = -1 if self._annealing_strategy == "linear" else trainer.max_epochs or -1
        options: dict[str, Any] = {"swa_lr": rates, "anneal_epochs": self._annealing_epochs, "last_epoch": last}
        ours = Schedule(SWALR(optimizer, anneal_strategy=self._annealing_strategy, **options))
        for theirs in trainer.schedules:
            logger.info("%s gives way to SWALR.", type(theirs.scheduler).__name__)
        trainer.schedules[:] = [ours]

    @torch.no_grad()
    def _update(self, module: Module) -> None:
        count = torch.tensor(self.n_averaged, device=self._device or module.device)
        for name, parameter in module.named_parameters():
            weight = parameter.detach().to(self._device or parameter.device)
            if not self.n_averaged:
                self._average[name] = weight.clone()
            else:
                average = self._average[name].to(weight.device)
                self._average[name] = self._avg_fn(average, weight, count)
        self.n_averaged += 1

    def _finish(self, trainer: Trainer, module: Module) -> None:
        if not self.n_averaged:
            return
        changed = [*module.parameters(), *(buffer for layer in _batch_norms(module) for buffer in layer.buffers())]
        own = {id(tensor) for tensor in changed}
        state = module.state_dict(keep_vars=True)
        self._own = {name: tensor.detach().clone() for name, tensor in state.items() if id(tensor) in own}
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self._average[name])
        if any(_batch_norms(module)):
            _update_statistics(trainer, module)
        _validate(trainer)
        for keeper in trainer.checkpoint_callbacks:
            keeper.offer(trainer)


def _batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """The layers that take statistics of what they are trained on."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None:
            yield part


@torch.no_grad()
def _update_statistics(trainer: Trainer, module: Module) -> None:
    """Give batch norm the mean of its statistics over the training batches, as they come from the module's weights."""
    layers = list(_batch_norms(module))
    with trial(trainer) as other:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # each batch counts alike
        _pass_over(trainer, other)
        found = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    for layer, statistics in zip(layers, found, strict=True):
        for name, buffer in layer.named_buffers():
            mean = trainer.strategy.reduce(statistics[name]) if name.startswith("running") else statistics[name]
            buffer.copy_(mean)


def _pass_over(trainer: Trainer, other: Trainer) -> None:
    """Run the training step on all training batches."""
    feed = other.fit_data.feed
    if (resumed := trainer.resumed) is not None:  # nothing was trained since the checkpoint was read
        set_rng_state(resumed["rng"])
        other.fit_data.load_states(resumed["train_feed"], [])
    feed.set_epoch(trainer.epochs_done)
    step = trainer.precision_plugin.wrap_step(step_of(trainer.module, "training_step"))
    transfer = other.hooks.transfer(trainer.data)
    with other.metrics.stage("train"):
        for index, (batch, _last) in enumerate(feed.batches(other.fit_data.batches)):
            moved = batch if transfer is None else transfer(batch, 0)
            other.metrics.begin_batch(moved)
            step(moved, index)


def _validate(trainer: Trainer) -> None:
    """Validate the average, so that it is known how good it is."""
    if not trainer.fit_data.validation:
        return
    phase = trainer.progress.phase
    trainer.sources = trainer.fit_data.validation
    with same_generators(trainer):
        evaluation.run(trainer, "validation", inference_mode=False)
    trainer.progress.phase = phase
