"""What a Trainer can be set to, checked, and made into what it works with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal

from shipline.errors import ConfigError, unknown_name
from shipline.plugins import known, load
from shipline.store import absolute
from shipline.train.accelerators import Accelerator
from shipline.train.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    RichProgressBar,
    Timer,
)
from shipline.train.compiling import check_compile
from shipline.train.distributed import environment
from shipline.train.environments import ClusterEnvironment
from shipline.train.hooks import monitors
from shipline.train.launch.options import RayCluster, worker_range
from shipline.train.lightning import as_callback, as_logger
from shipline.train.loggers import CSVLogger, Logger
from shipline.train.loops.optimization import ClipAlgorithm
from shipline.train.options.configurable import Configurable
from shipline.train.options.counts import place_of, workers_of
from shipline.train.options.duration import Duration, positive_seconds, seconds_of
from shipline.train.options.plugged import (
    made,
    own_environment,
    own_precision,
    precision_name,
    profiler_of,
    strategy_setting,
)
from shipline.train.precision import Precision
from shipline.train.profilers import Profiler
from shipline.train.strategies import Strategy, joins

DEFAULT_MAX_EPOCHS = 1000
#: A number of batches, or a share of them; both, since the command line tells 1 from 1.0 by them.
Share = int | float
Limit = Share | None


class Settings(Configurable):
    """The options of a Trainer.

    Args:
        accelerator: "auto", "cpu", "gpu", a device type that torch knows, the name of a plug-in, or an Accelerator.
        strategy: how several workers train together: "auto", a name (`shipline list strategies`), or a Strategy.
        devices: workers on each machine; "auto" is one, or what `workers` says.
        num_nodes: machines.
        workers: processes that train together; default: `devices` times `num_nodes`. One runs here; more run as Ray
            actors; (least, most) of them, as the cluster has room. Started by torchrun, SLURM, MPI or Kubernetes, the
            process joins the others that these have started.
        cluster: how workers use the Ray cluster, and what faults they survive: a RayCluster.
        precision: "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed" or "fp8"; 64, 32, 16, "bf16".
        logger: where metrics go: "csv", "tensorboard", "mlflow", "wandb", a Logger, or several of them; True is a CSV
            file in the run's directory, False is nowhere.
        callbacks: what acts at the hooks of the run, in order: Callbacks, or their names (`shipline list callbacks`).
        fast_dev_run: try everything with so many batches (True: 1) and write nothing: no loggers, no checkpoints.
        max_epochs: epochs after which to stop; -1: no limit; default: 1000 where nothing else limits the fit.
        min_epochs: epochs that are trained whatever asks to stop.
        max_steps: optimizer steps after which to stop; -1: no limit.
        min_steps: optimizer steps that are made whatever asks to stop, but for `max_epochs`.
        max_time: time after which to stop: "DD:HH:MM:SS", a timedelta, or a dict of its arguments.
        limit_train_batches: batches of a training epoch, or their share as a float; 0 trains nothing; default: all.
        limit_val_batches: batches of a validation, or their share.
        limit_test_batches: batches of a test, or their share.
        limit_predict_batches: batches of a prediction, or their share.
        overfit_batches: train and validate on so few batches (or that share), in order; 0 is off.
        val_check_interval: validate after so many batches, that share of an epoch, or that time.
        check_val_every_n_epoch: validate in every n-th epoch; None: `val_check_interval` counts over epochs.
        num_sanity_val_steps: validation batches tried before training, to find mistakes early; -1: all.
        log_every_n_steps: optimizer steps between two records of what training steps log; 0: none.
        enable_checkpointing: add a ModelCheckpoint where `callbacks` has none.
        enable_progress_bar: add a RichProgressBar where `callbacks` has no ProgressBar.
        enable_model_summary: add a ModelSummary where `callbacks` has none.
        accumulate_grad_batches: batches whose gradients are averaged into one optimizer step.
        gradient_clip_val: limit of the gradients before a step; default: none.
        gradient_clip_algorithm: "norm" limits the norm of all together, "value" each value.
        nonfinite_loss: what to do about a loss that is NaN or infinite: "raise", "skip" the batch, "stop", or "ignore".
        deterministic: True refuses, "warn" names, operations that are not; None leaves torch as it is.
        benchmark: let cuDNN look for the fastest algorithms; None leaves torch as it is.
        inference_mode: validate, test and predict in `torch.inference_mode`; False: in `torch.no_grad`.
        use_distributed_sampler: give each worker its share of the rows; False: the loaders do.
        profiler: "simple", "advanced", "pytorch", "memory", or a Profiler.
        detect_anomaly: let autograd say which operation gave a NaN; slow.
        barebones: leave out all that costs time: logging, checkpoints, progress, summary, sanity check.
        plugins: a Precision or a ClusterEnvironment of the user's own, or both.
        sync_batchnorm: take the statistics of batch norm over all workers.
        reload_dataloaders_every_n_epochs: ask for the loaders again every n epochs; 0: never.
        default_root_dir: URL below which runs keep their files; default: `runs`.
        name: of the experiment: runs are `<default_root_dir>/<name>/version_N`; default: the module's class name.
        compile: compile the training and evaluation steps: True, or options of `torch.compile`.
        step_timeout: seconds, or a time as `max_time` has it, that a step may take: then the run ends, and says which
            worker is missing and in which collective; default: a step may take any time.
        enable_autolog_hparams: write the module's arguments to the loggers.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        workers: int | tuple[int, int] | None = None,
        cluster: RayCluster | None = None,
        precision: int | str | None = None,
        logger: bool | str | Logger | Sequence[str | Logger] | None = None,
        callbacks: Sequence[str | Callback] | str | Callback | None = None,
        fast_dev_run: bool | int = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: Duration | None = None,
        limit_train_batches: Limit = None,
        limit_val_batches: Limit = None,
        limit_test_batches: Limit = None,
        limit_predict_batches: Limit = None,
        overfit_batches: Share = 0.0,
        val_check_interval: Share | Duration | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm | None = None,
        nonfinite_loss: Literal["raise", "skip", "stop", "ignore"] = "raise",
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Precision | ClusterEnvironment | Sequence[Precision | ClusterEnvironment] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | None = None,
        name: str | None = None,
        compile: bool | dict[str, Any] = False,  # noqa: A002 -- what torch calls it
        step_timeout: float | Duration | None = None,
        enable_autolog_hparams: bool = True,
    ) -> None:
        on = not barebones
        #: A Strategy, or the name of one; what runs is `strategy`.
        self.strategy_setting = strategy_setting(strategy)
        #: What has started this process together with others, or with a queue; None: nobody has.
        self.environment = environment(own_environment(plugins))
        self.num_nodes = num_nodes
        #: The least and the most workers, where their number may change.
        self.worker_range = worker_range(workers)
        count: Any = self.worker_range[1] if self.worker_range else workers
        self.workers = workers_of(count, devices, num_nodes)
        if (group := self.started_by) is not None:
            self.workers, self.num_nodes = place_of(group, workers, devices, num_nodes)
        self.cluster = RayCluster() if cluster is None else cluster
        self.fast_dev_run = fast_dev_run
        self.max_epochs = max_epochs
        self.min_epochs = min_epochs or 0
        self.max_steps = max_steps
        self.min_steps = min_steps or 0
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.limit_predict_batches = limit_predict_batches
        self.overfit_batches = overfit_batches
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = (2 if on else 0) if num_sanity_val_steps is None else num_sanity_val_steps
        self.log_every_n_steps = (50 if on else 0) if log_every_n_steps is None else log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm: ClipAlgorithm = gradient_clip_algorithm or "norm"
        self.nonfinite_loss = nonfinite_loss
        self.deterministic = deterministic
        self.benchmark = benchmark
        self.inference_mode = inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.detect_anomaly = detect_anomaly
        self.barebones = barebones
        self.sync_batchnorm = sync_batchnorm
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.default_root_dir = absolute(default_root_dir or "runs")
        self.name = name
        self.compile = check_compile(compile)
        self.step_timeout = None if step_timeout is None else positive_seconds("step_timeout", step_timeout)
        self.enable_autolog_hparams = enable_autolog_hparams
        timed = isinstance(val_check_interval, str | timedelta | dict)
        #: Seconds between two validations, where they go by time.
        self.val_check_seconds = seconds_of("val_check_interval", val_check_interval) if timed else None  # type: ignore[arg-type]
        self.val_check_interval: Any = 1.0 if timed or val_check_interval is None else val_check_interval
        if max_epochs is None and max_steps == -1 and max_time is None:
            self.max_epochs = DEFAULT_MAX_EPOCHS
        _check(self)
        if barebones:
            _check_barebones(
                logger=logger, enable_checkpointing=enable_checkpointing, enable_progress_bar=enable_progress_bar,
                enable_model_summary=enable_model_summary, num_sanity_val_steps=num_sanity_val_steps,
                log_every_n_steps=log_every_n_steps, fast_dev_run=fast_dev_run, detect_anomaly=detect_anomaly,
                profiler=profiler,
            )  # fmt: skip
        self._accelerator = accelerator
        #: The numbers of the devices to compute on; None: as many as there are workers.
        self.device_numbers = None if isinstance(devices, str | int) else list(devices)
        #: A Precision of the user's own; what runs is `precision_plugin`.
        self.precision_setting = own_precision(plugins, precision)
        self.precision = precision_name(precision) if self.precision_setting is None else self.precision_setting.name
        self.profiler = profiler_of(profiler)
        self.loggers = _loggers(on if logger is None else logger)
        self.callbacks = _callbacks(
            callbacks,
            None if max_time is None else Timer(timedelta(seconds=seconds_of("max_time", max_time))),
            ModelSummary if _or(enable_model_summary, on) else None,
            RichProgressBar if _or(enable_progress_bar, on) else None,
            ModelCheckpoint if _or(enable_checkpointing, on) and not fast_dev_run else None,
        )
        if overfit_batches:
            self.limit_train_batches = self.limit_val_batches = overfit_batches
        if fast_dev_run:
            self._try_only(int(fast_dev_run))
        #: Settings that the run was started with, kept in its directory; the command line sets it.
        self.config: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the run before."""

    @property
    def started_by(self) -> ClusterEnvironment | None:
        """What has started this process together with those that it trains with; None where it trains alone."""
        found = self.environment
        return found if found is not None and found.world_size() > 1 and joins(self.strategy_setting) else None

    def _try_only(self, batches: int) -> None:
        """Take a few batches of everything and keep nothing."""
        self.max_epochs, self.max_steps, self.min_epochs, self.min_steps = 1, batches, 0, 0
        self.limit_train_batches = self.limit_val_batches = batches
        self.limit_test_batches = self.limit_predict_batches = batches
        self.num_sanity_val_steps, self.check_val_every_n_epoch, self.log_every_n_steps = 0, 1, 1
        self.val_check_interval, self.val_check_seconds = 1.0, None
        self.loggers = []
        self.callbacks = [c for c in self.callbacks if not isinstance(c, ModelCheckpoint | EarlyStopping)]


_AT_LEAST = {
    "num_nodes": 1, "workers": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "max_epochs": -1,
    "max_steps": -1, "min_epochs": 0, "min_steps": 0, "num_sanity_val_steps": -1, "accumulate_grad_batches": 1,
    "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip
_LIMITS = (
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "val_check_interval",
)  # fmt: skip
_CHOICES = {
    "gradient_clip_algorithm": ("norm", "value"),
    "nonfinite_loss": ("raise", "skip", "stop", "ignore"),
    "deterministic": (None, True, False, "warn"),
}


def _check(settings: Settings) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ConfigError: says which, what it is, and what it can be.
    """
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"Trainer has {name}={value!r}; set a whole number from {least} on.")
    for name in _LIMITS:
        value = getattr(settings, name)
        share = isinstance(value, float) and 0 <= value <= 1
        count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if value is not None and not share and not count:
            raise ConfigError(
                f"Trainer has {name}={value!r}; set a whole number from 0 on, or a share of the batches: a float up to "
                "1.0."
            )
    for name, choices in _CHOICES.items():
        if (value := getattr(settings, name)) not in choices:
            raise ConfigError(f"Trainer has {name}={value!r}; choose one of {', '.join(map(repr, choices))}.")
    if not isinstance(settings.cluster, RayCluster):
        raise ConfigError(f"Trainer has cluster={settings.cluster!r}; give it a shipline.train.RayCluster.")
    clip = settings.gradient_clip_val
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 <= clip < math.inf):
        raise ConfigError(f"Trainer has gradient_clip_val={clip!r}; set a number from 0 on.")
    dev = settings.fast_dev_run
    if not isinstance(dev, int) or dev < 0:
        raise ConfigError(f"Trainer has fast_dev_run={dev!r}; set True, False or a number of batches.")
    _check_interval(settings)


def _check_interval(settings: Settings) -> None:
    interval = settings.val_check_interval
    if not interval:
        raise ConfigError(
            f"Trainer has val_check_interval={interval!r}; set a number of batches, a share of them, or a time; "
            "limit_val_batches=0 switches validation off."
        )
    if settings.check_val_every_n_epoch is None and isinstance(interval, float) and settings.val_check_seconds is None:
        raise ConfigError(
            f"Trainer has check_val_every_n_epoch=None, which counts batches over epochs, and val_check_interval="
            f"{interval}, a share of an epoch: set val_check_interval to a number of batches, or to a time."
        )


def _check_barebones(**given: Any) -> None:
    """Barebones leaves all of this out; to ask for it as well is a contradiction."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"Trainer has barebones=True, which leaves out {name}; got {name}={value!r}.")


def _loggers(given: bool | str | Logger | Iterable[str | Logger]) -> list[Logger]:
    """Return the loggers: True is the CSV file, False is none, a name is one of the kind `logger` of the plug-ins."""
    if isinstance(given, bool):
        return [CSVLogger()] if given else []
    items = given if isinstance(given, list | tuple) else [given]
    return [_named_logger(item) if isinstance(item, str) else as_logger(item) for item in items]


def _named_logger(name: str) -> Logger:
    """Return the logger of that name, "csv", or with a class of that name, "CSVLogger"."""
    names = known("logger")
    classes = {target.rpartition(":")[2]: name for name, target in names.items()}
    if name not in names and name not in classes:
        raise unknown_name("logger", name, [*names, *classes])
    made: Logger = load("logger", classes.get(name, name))()
    return made


def _callbacks(given: Any, timer: Callback | None, *defaults: type[Callback] | None) -> list[Callback]:
    """Return the callbacks in the order in which they are called, with those that are on by default."""
    items = given if isinstance(given, list | tuple) else [given] if given else []
    callbacks = [as_callback(made("callback", item)) for item in items]
    if timer is not None:
        callbacks.append(timer)
    for default in defaults:
        kind: Any = ProgressBar if default is RichProgressBar else default
        if default is not None and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(default())
    return ordered(callbacks)


def with_callbacks(callbacks: list[Callback], own: Any) -> list[Callback]:
    """Return the callbacks with a module's `own`, which replace those of their classes."""
    own = [as_callback(item) for item in (own if isinstance(own, list | tuple) else [own] if own else [])]
    if not own:
        return callbacks
    classes = {type(callback) for callback in own}
    return ordered([*(c for c in callbacks if type(c) not in classes), *own])


def ordered(callbacks: list[Callback]) -> list[Callback]:
    """Return the callbacks as they are called: those that look at finished metrics last, and those that save after."""
    callbacks = sorted(callbacks, key=lambda c: (monitors(c), isinstance(c, ModelCheckpoint)))
    keys = [callback.state_key for callback in callbacks if callback.state_dict()]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"Two callbacks keep their state under one name ({keys}): give them different state_keys.")
    return callbacks


def _or(given: bool | None, default: bool) -> bool:
    return default if given is None else given
