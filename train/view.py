"""What hooks may ask a Trainer; names and meanings are PyTorch Lightning's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shipline.train.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
)
from shipline.train.lightning import FitLoop

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shipline.train.data import DataModule
    from shipline.train.loggers import Logger
    from shipline.train.loops.evaluation import Name, Source
    from shipline.train.loops.fit_data import FitData
    from shipline.train.loops.progress import Progress
    from shipline.train.loops.schedules import Schedule
    from shipline.train.metrics import MetricLog
    from shipline.train.module import Module
    from shipline.train.precision import Precision
    from shipline.train.run import RunDirectory
    from shipline.train.signals import Signals
    from shipline.train.strategies import Strategy


@dataclass
class State:
    """What the Trainer does: `fn` is "fit", "validate", "test" or "predict"; `stage` is what of it; both None outside.

    The words are those of Lightning's TrainerFn and RunningStage, and equal to them.
    """

    fn: str | None = None
    stage: str | None = None
    status: str = "initializing"

    @property
    def finished(self) -> bool:
        """Whether the last stage came to its end."""
        return self.status == "finished"


class TrainerView:
    """Questions about a run."""

    callbacks: list[Callback]
    loggers: list[Logger]
    strategy: Strategy
    precision_plugin: Precision
    device: torch.device
    module: Module
    data: DataModule
    optimizers: list[Optimizer]
    schedules: list[Schedule]
    metrics: MetricLog
    progress: Progress
    fit_data: FitData
    sources: list[Source]
    signals: Signals
    state: State
    evaluation: Name | None
    sanity_checking: bool
    run_directory: RunDirectory | None
    default_root_dir: str
    accumulate_grad_batches: int
    max_epochs: int | None
    max_steps: int
    num_nodes: int
    num_sanity_val_steps: int
    limit_val_batches: float | None
    reduced_metrics: dict[str, torch.Tensor]
    epoch_progress: dict[str, float]

    # ---- workers -----------------------------------------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """The number of this worker, from 0."""
        return self.strategy.rank

    @property
    def local_rank(self) -> int:
        """The number of this worker on its machine, from 0."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """The number of this machine, from 0."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first worker, the one that writes."""
        return self.strategy.rank == 0

    @property
    def num_devices(self) -> int:
        """Devices on each machine."""
        return max(1, self.world_size // self.num_nodes)

    @property
    def device_ids(self) -> list[int]:
        """The numbers of the devices on this machine."""
        return list(range(self.num_devices))

    # ---- counters ----------------------------------------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        """The number of the epoch, from 0; after a fit, how many there were."""
        return self.progress.current_epoch

    @property
    def epochs_done(self) -> int:
        """How many epochs are finished."""
        return self.progress.epochs_done

    @property
    def global_step(self) -> int:
        """How many steps optimizers have made; those of each count."""
        return self.progress.global_step

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch that is trained on, or was last, is the epoch's last."""
        return self.progress.last or self.progress.begun_last

    @property
    def num_training_batches(self) -> float:
        """How many batches an epoch has; infinity where nobody knows."""
        count = self.fit_data.batches
        return math.inf if count is None else count

    @property
    def num_val_batches(self) -> list[float]:
        """How many batches this worker has of each validation loader."""
        return [_or_infinite(count) for count in self.fit_data.validation_batches]

    @property
    def num_sanity_val_batches(self) -> list[float]:
        """How many of them are tried before training."""
        most = math.inf if self.num_sanity_val_steps == -1 else self.num_sanity_val_steps
        return [min(most, count) for count in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[float]:
        """How many batches this worker has of each loader of the stage that runs."""
        return [_or_infinite(source.own_batches()) for source in self.sources]

    num_predict_batches = num_test_batches

    @property
    def estimated_stepping_batches(self) -> float:
        """How many optimizer steps the fit will make; infinity where that is not known. Loads the training loader."""
        if self.max_epochs in (None, -1):
            return math.inf if self.max_steps == -1 else self.max_steps
        assert self.max_epochs is not None
        assert self.fit_data.feed is not None  # asked for now, it says how many batches there are
        batches = self.fit_data.batches
        if batches is None:
            return math.inf if self.max_steps == -1 else self.max_steps
        epochs = max(self.max_epochs, 1)
        scheduler = next((c for c in self.callbacks if isinstance(c, GradientAccumulationScheduler)), None)
        if scheduler is None:
            steps = math.ceil(batches / self.accumulate_grad_batches) * epochs
        else:
            every = map(scheduler.get_accumulate_grad_batches, range(epochs))
            steps = sum(math.ceil(batches / count) for count in every)
        return steps if self.max_steps == -1 else min(self.max_steps, steps)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Which share of the rows this worker trains on, as PyTorch's DistributedSampler takes it."""
        return {"num_replicas": self.strategy.data_world_size, "rank": self.strategy.data_rank}

    # ---- what runs ---------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether batches are trained on."""
        return self.state.fn == "fit" and self.evaluation is None

    @property
    def validating(self) -> bool:
        """Whether validation runs, by itself or within a fit."""
        return self.evaluation == "validation" and not self.sanity_checking

    @property
    def testing(self) -> bool:
        """Whether the test runs."""
        return self.evaluation == "test"

    @property
    def predicting(self) -> bool:
        """Whether predictions are made."""
        return self.evaluation == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether validation or the test runs."""
        return self.validating or self.testing

    @property
    def received_sigterm(self) -> bool:
        """Whether the process was told to end."""
        return self.signals.received is not None

    @property
    def interrupted(self) -> bool:
        """Whether the last stage was interrupted."""
        return self.state.status == "interrupted"

    @property
    def enable_validation(self) -> bool:
        """Whether a fit validates."""
        return self.fit_data.has_validation

    # ---- metrics -----------------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """All that was logged: the latest values of steps, and those of finished epochs."""
        steps = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self.metrics.step.items()}
        return self.reduced_metrics | steps

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with `prog_bar=True`: the latest values of steps, and those of finished epochs."""
        steps = {name: float(value) for name, value in self.metrics.progress.items()}
        return steps | self.epoch_progress

    @property
    def fit_loop(self) -> FitLoop:
        """What packages look up in Lightning's loop."""
        return FitLoop(self)  # type: ignore[arg-type]

    _logger_connector = fit_loop

    # ---- collaborators -----------------------------------------------------------------------------------------------

    @property
    def lightning_module(self) -> Module:
        """The module."""
        return self.module

    @property
    def model(self) -> Module:
        """The module."""
        return self.module

    @property
    def datamodule(self) -> DataModule:
        """Where the batches come from."""
        return self.data

    @property
    def train_dataloader(self) -> Any:
        """The training loader, or several."""
        return self.fit_data.train_loader

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader, or several."""
        if self.state.fn == "fit":
            return self.fit_data.validation_loaders
        return self._stage_loaders()

    @property
    def test_dataloaders(self) -> Any:
        """The loader of the stage that runs, or several."""
        return self._stage_loaders()

    predict_dataloaders = test_dataloaders

    def _stage_loaders(self) -> Any:
        loaders = [source.feed.loader for source in self.sources]
        return loaders[0] if len(loaders) == 1 else loaders or None

    @property
    def optimizer(self) -> Optimizer:
        """The first optimizer."""
        return self.optimizers[0]

    @property
    def lr_scheduler_configs(self) -> list[Schedule]:
        """The learning rate schedulers, and when they step."""
        return self.schedules

    @property
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        """Every ModelCheckpoint."""
        return [c for c in self.callbacks if isinstance(c, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first ModelCheckpoint."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """Every EarlyStopping."""
        return [c for c in self.callbacks if isinstance(c, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first EarlyStopping."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar."""
        return next((c for c in self.callbacks if isinstance(c, ProgressBar)), None)

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @property
    def log_dir(self) -> str | None:
        """URL of the run's directory."""
        return None if self.run_directory is None else str(self.run_directory.store)


def _or_infinite(count: int | None) -> float:
    return math.inf if count is None else count
