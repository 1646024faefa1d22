"""The Trainer: settings of a run, and its four entry points."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import ConfigError, TrainingError
from shipline.lineage import Lineage, describe_code, publishable
from shipline.store import absolute, join, open_store
from shipline.train import checkpointing, loops
from shipline.train.callbacks import Callback, ModelCheckpoint, ProgressBar
from shipline.train.data import DataModule, Loaders
from shipline.train.hooks import Hooks
from shipline.train.loggers import CSVLogger, Logger
from shipline.train.metrics import MetricLog
from shipline.train.module import Module, check_module
from shipline.train.optimizers import Schedule
from shipline.train.run import Run, RunDirectory
from shipline.train.seed import current_seed
from shipline.train.strategy import SingleProcess, pick_device

DEFAULT_MAX_EPOCHS = 1000


class Trainer:
    """Trains, validates, tests and predicts; names and meanings are PyTorch Lightning's.

    Args:
        max_epochs: epochs after which to stop; default: 1000 where `max_steps` is not given either.
        max_steps: optimizer steps after which to stop; -1: no limit.
        min_epochs: epochs that are trained whatever asks to stop.
        accelerator: "auto", "cpu", "gpu", or a device type that torch knows.
        workers: processes that train together. One runs here; more run as Ray actors.
        callbacks: what acts at the hooks of the run, in order.
        logger: where metrics go; True is a CSV file in the run's directory, False is nowhere.
        default_root_dir: URL below which runs keep their files.
        name: of the experiment: runs are `<default_root_dir>/<name>/version_N`; default: the module's class name.
        limit_train_batches: batches of a training epoch; default: all.
        limit_val_batches: batches of a validation; default: all.
        limit_test_batches: batches of a test; default: all.
        check_val_every_n_epoch: validate after every n-th epoch.
        num_sanity_val_steps: validation batches tried before training, to find mistakes early.
        log_every_n_steps: optimizer steps between two records of what training steps log.
        enable_checkpointing: add a ModelCheckpoint where `callbacks` has none.
        enable_progress_bar: add a ProgressBar where `callbacks` has none.
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        max_steps: int = -1,
        min_epochs: int = 0,
        accelerator: str = "auto",
        workers: int = 1,
        callbacks: Sequence[Callback] | Callback | None = None,
        logger: bool | Logger | Sequence[Logger] = True,
        default_root_dir: str = "runs",
        name: str | None = None,
        limit_train_batches: int | None = None,
        limit_val_batches: int | None = None,
        limit_test_batches: int | None = None,
        check_val_every_n_epoch: int = 1,
        num_sanity_val_steps: int = 2,
        log_every_n_steps: int = 50,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
    ) -> None:
        self.max_epochs = DEFAULT_MAX_EPOCHS if max_epochs is None and max_steps == -1 else max_epochs
        self.max_steps = max_steps
        self.min_epochs = min_epochs
        self.accelerator = accelerator
        self.workers = workers
        self.default_root_dir = absolute(default_root_dir)
        self.name = name
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = num_sanity_val_steps
        self.log_every_n_steps = log_every_n_steps
        self._check_counts()
        self.callbacks = _callbacks(callbacks, enable_checkpointing, enable_progress_bar)
        self.loggers = _loggers(logger)
        #: Settings that the run was started with, kept in its directory; the command line sets it.
        self.config: dict[str, Any] = {}
        self._reset()

    def _check_counts(self) -> None:
        at_least = {
            "workers": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 1, "max_epochs": 0, "max_steps": -1,
            "min_epochs": 0, "num_sanity_val_steps": 0, "limit_train_batches": 1, "limit_val_batches": 0,
            "limit_test_batches": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"Trainer has {name}={value!r}; set a whole number from {least} on.")

    def _reset(self) -> None:
        """Forget the run before."""
        self.strategy: SingleProcess = SingleProcess()
        self.device = torch.device("cpu")
        self.metrics = MetricLog()
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.logged_metrics: dict[str, float] = {}
        self.epoch_progress: dict[str, float] = {}
        self.current_epoch = 0
        self.epochs_done = 0
        self.global_step = 0
        self.num_training_batches: int | None = None
        self.should_stop = False
        self.sanity_checking = False
        self.validated_this_epoch = False
        self.run: RunDirectory | None = None
        self.lineage = Lineage()
        self.module: Module
        self.data: DataModule
        self.hooks: Hooks
        self.optimizer: Optimizer
        self.schedules: list[Schedule] = []
        self.train_loader: Any = None

    # ---- entry points ------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | None = None,
    ) -> Run:
        """Train the module.

        Args:
            model: the module to train; it holds the final weights afterwards.
            train_dataloaders: a loader of training batches, or a DataModule.
            val_dataloaders: a loader of validation batches.
            datamodule: instead of the loaders.
            ckpt_path: URL of a checkpoint to go on from, or "last" or "best" of this experiment.

        Raises:
            ConfigError: a setting does not fit; found before training where that is possible.
            TrainingError: the run failed.
        """
        check_module(model)
        data = _data(datamodule, train=train_dataloaders, val=val_dataloaders)
        pick_device(self.accelerator)  # before anything is written
        self._reset()
        resume = self._find_checkpoint(ckpt_path, model)
        self.lineage = Lineage(
            **describe_code(_directory_of(type(model))),
            config=publishable(self.config),
            seed=current_seed(),
            world_size=self.workers,
        )
        self.run = self._open_run(model, resume)
        if self.workers > 1:
            from shipline.train.launcher import launch

            launch(self, model, data, resume)
        else:
            loops.fit(self, model, data, resume)
        return self._result(model, data)

    def validate(
        self, model: Module, dataloaders: Any = None, datamodule: DataModule | None = None
    ) -> list[dict[str, float]]:
        """Return what `validation_step` logs over the validation data, as a list of one dict, as Lightning does."""
        check_module(model)
        data = _data(datamodule, val=dataloaders)
        return [loops.evaluate(self, model, data, "validate", self.limit_val_batches)]

    def test(
        self, model: Module, dataloaders: Any = None, datamodule: DataModule | None = None
    ) -> list[dict[str, float]]:
        """Return what `test_step` logs over the test data, as a list of one dict, as Lightning does."""
        check_module(model)
        data = _data(datamodule, test=dataloaders)
        return [loops.evaluate(self, model, data, "test", self.limit_test_batches)]

    def predict(self, model: Module, dataloaders: Any = None, datamodule: DataModule | None = None) -> list[Any]:
        """Return what `predict_step` returns for each batch of the data to predict."""
        check_module(model)
        return loops.predict(self, model, _data(datamodule, predict=dataloaders))

    def save_checkpoint(self, filepath: str) -> None:
        """Commit the run as it is now to a directory of that URL; every worker must call it."""
        if not hasattr(self, "optimizer"):
            raise TrainingError("There is no run to save: call fit first, or save in a hook while workers train.")
        checkpointing.save(self, open_store(absolute(filepath)))

    # ---- what hooks look at ------------------------------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """The number of this worker, from 0."""
        return self.strategy.rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first worker, the one that writes."""
        return self.strategy.rank == 0

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with `prog_bar=True`: the latest values of steps, and those of finished epochs."""
        steps = {name: float(value) for name, value in self.metrics.progress.items()}
        return steps | self.epoch_progress

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first ModelCheckpoint."""
        return next((c for c in self.callbacks if isinstance(c, ModelCheckpoint)), None)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def prepare(self, module: Module, data: DataModule, strategy: SingleProcess) -> None:
        """Join module, data and strategy for a stage."""
        self.strategy = strategy
        self.device = pick_device(self.accelerator)
        self.module, self.data = module.to(self.device), data
        module.attach(self)
        self.hooks = Hooks(self, module, self.callbacks)

    def _experiment(self, model: Module) -> str:
        return self.name or type(model).__name__.lower()

    def _find_checkpoint(self, ckpt_path: str | None, model: Module) -> Checkpoint | None:
        if ckpt_path is None:
            return None
        if ckpt_path in ("last", "best"):
            ckpt_path = join(join(self.default_root_dir, self._experiment(model)), ckpt_path)
        return open_checkpoint(absolute(ckpt_path))

    def _open_run(self, model: Module, resume: Checkpoint | None) -> RunDirectory | None:
        """Go on in the directory of the run that is resumed, if it is of this experiment; else take a new one."""
        if not self.loggers and self.checkpoint_callback is None:
            return None
        name = self._experiment(model)
        run = RunDirectory.of(resume) if resume is not None else None
        if run is not None and run.experiment == join(self.default_root_dir, name):
            return run
        description = {
            "module": f"{type(model).__module__}.{type(model).__qualname__}",
            "lineage": self.lineage.model_dump(mode="json"),
        }
        return RunDirectory.create(self.default_root_dir, name, description)

    def _result(self, model: Module, data: DataModule) -> Run:
        kept = self.checkpoint_callback
        return Run(
            url=None if self.run is None else str(self.run.store),
            metrics={name: float(value) for name, value in self.callback_metrics.items()},
            best_url=None if kept is None else kept.best_model_path,
            last_url=None if kept is None else kept.last_model_path,
            module=model,
            data=data,
        )


def _directory_of(cls: type) -> Path | None:
    """Where the user's code lies: its repository is the one that counts."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else Path(file).parent


def _data(datamodule: DataModule | None, **loaders: Any) -> DataModule:
    """Return the DataModule given as such, or in place of a loader, or made of the loaders."""
    given: list[Any] = [item for item in (datamodule, *loaders.values()) if item is not None]
    if not given:
        raise ConfigError("There is no data: give a DataModule or a DataLoader.")
    if datamodule is None:
        datamodule = next((item for item in given if isinstance(item, DataModule)), None)
    if datamodule is None:
        return Loaders(**loaders)
    if not isinstance(datamodule, DataModule):
        raise ConfigError(f"datamodule is a {type(datamodule).__name__}; derive its class from shipline.DataModule.")
    if len(given) > 1:
        raise ConfigError("Give loaders or a datamodule, not both.")
    return datamodule


def _callbacks(given: Sequence[Callback] | Callback | None, checkpointing: bool, progress: bool) -> list[Callback]:
    callbacks = [given] if isinstance(given, Callback) else list(given or ())
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks has a {type(callback).__name__}, which is no shipline.train.Callback.")
    if progress and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(ProgressBar())
    if checkpointing and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        callbacks.append(ModelCheckpoint())
    # Those that look at finished metrics come last, and of them those that save.
    callbacks.sort(key=lambda c: (c.monitors, isinstance(c, ModelCheckpoint)))
    keys = [callback.state_key for callback in callbacks if callback.state_dict()]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"Two callbacks keep their state under one name ({keys}): give them different state_keys.")
    return callbacks


def _loggers(given: bool | Logger | Sequence[Logger]) -> list[Logger]:
    if isinstance(given, bool):
        return [CSVLogger()] if given else []
    return [given] if isinstance(given, Logger) else list(given)
