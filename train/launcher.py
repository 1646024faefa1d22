"""Several workers, as Ray Train actors. The only module that imports ray.

Ray Train places the workers, joins them in a process group and watches them; what runs in each is the same loop as in
one process. Its `report()` is not used: metrics that come without one of its own checkpoints are dropped by it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import safetensors.torch

from shipline.errors import ConfigError, MissingExtraError, ShiplineError, TrainingError
from shipline.train.accelerators import pick_accelerator
from shipline.train.checkpoints.weights import dump_weights
from shipline.train.data import DataModule
from shipline.train.lightning import attach
from shipline.train.seed import current_seed
from shipline.train.stage import Work
from shipline.train.strategies import pick_strategy
from shipline.train.trainer import Trainer
from shipline.train.worker import named, run_worker

try:
    import ray
    import ray.cloudpickle
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
except ModuleNotFoundError as error:
    raise MissingExtraError("Trainer(workers=...) above 1 needs Ray. Run: pip install 'shipline[ray]'") from error

# Of a cluster that we start: nothing is reported to anybody, only holders of its token may use it (ray.init turns that
# on), and its own log lines do not drown the run's. What the user set stays. Ray reads the token once in a process.
_OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what workers print comes twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away from us
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def launch(trainer: Trainer, module: Any, data: DataModule | None, stage: Work, **options: Any) -> Any:
    """Run a stage on `trainer.workers` workers, and bring weights, metrics and callbacks back into these objects.

    In place of a module there may be a function of the user's own.

    Raises:
        ConfigError: the cluster has too few resources; or what a worker found wrong in the settings.
        TrainingError: a worker failed; the message names the first cause.
    """
    resource = pick_accelerator(trainer._accelerator).ray_resource  # noqa: SLF001 -- its own launcher
    with _logging(), _cluster(trainer.workers), tempfile.TemporaryDirectory(prefix="shipline-ray-") as scratch:
        _check_resources(trainer.workers, resource)
        work = {
            "payload": ray.cloudpickle.dumps((trainer, module, data, stage, options)),
            "path": [entry for entry in sys.path if entry],
            "seed": current_seed(),
        }
        fit = TorchTrainer(
            _work,
            train_loop_config=work,
            scaling_config=ScalingConfig(num_workers=trainer.workers, use_gpu=resource == "GPU"),
            run_config=RunConfig(storage_path=scratch, logging_config=LoggingConfig(log_level="ERROR")),
        )
        try:
            result = fit.fit()
        except TrainingFailedError as error:
            raise _first_cause(error, trainer.workers) from error
        return _take_back(trainer, module, stage, result.return_value)


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Use the cluster that is there (connected to, or named by RAY_ADDRESS), or our own for the time of the fit."""
    if ray.is_initialized():
        yield
        return
    with _environment({} if "RAY_ADDRESS" in os.environ else _OWN_CLUSTER):
        try:
            if "RAY_ADDRESS" in os.environ:
                ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.ERROR)
            else:  # "local": a plain init() would join any cluster that runs on this machine
                ray.init(
                    "local",
                    num_cpus=max(workers, os.cpu_count() or 1),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    logging_config=ray.LoggingConfig(log_level="ERROR"),
                )
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Leave the root logger as it was: Ray sets its level, and gives it handlers that stay."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set what is not set, and leave the environment as it was; ray.init changes some of it, too."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_resources(workers: int, resource: str) -> None:
    """Ray would wait for ever for what the cluster does not have."""
    have = int(ray.cluster_resources().get(resource, 0))
    if have < workers:
        raise ConfigError(
            f"Trainer has workers={workers}, but the cluster has {have} {resource}s: set workers to {have} or less."
        )


def _work(config: dict[str, Any]) -> bytes | None:
    """What runs in each worker. The user's code is found where the driver found it."""
    sys.path.extend(entry for entry in config["path"] if entry not in sys.path)
    trainer, module, data, stage, options = ray.cloudpickle.loads(config["payload"])
    strategy = pick_strategy(trainer.strategy_setting, trainer.workers)
    found = run_worker(trainer, stage, module, data, strategy, config["seed"], **options)
    if strategy.rank:
        return None
    returned: dict[str, Any] = {"found": found, "callbacks": trainer.callbacks, "lineage": trainer.lineage}
    returned["state"] = {name: getattr(trainer, name) for name in _STATE}
    if stage == "fit":
        returned["weights"], returned["tied"] = dump_weights(module.state_dict())
    return bytes(ray.cloudpickle.dumps(returned))  # Ray Train refuses to return objects that hold tensors


_STATE = ("reduced_metrics", "logged_metrics", "epoch_progress", "progress", "should_stop")


def _take_back(trainer: Trainer, module: Any, stage: Work, data: bytes) -> Any:
    """Leave the driver's objects as a stage in this process would have left them."""
    returned = ray.cloudpickle.loads(data)
    if stage == "fit":
        tensors = safetensors.torch.load(returned["weights"])
        module.load_state_dict(tensors | {name: tensors[source] for name, source in returned["tied"].items()})
    for own, theirs in zip(trainer.callbacks, returned["callbacks"], strict=True):
        own.__dict__.update(theirs.__dict__)
    trainer.lineage = returned["lineage"]
    for name, value in returned["state"].items():
        setattr(trainer, name, value)
    if stage != "run":
        trainer.module = module
        attach(module, trainer)
    return returned["found"]


def _first_cause(error: TrainingFailedError, workers: int) -> ShiplineError:
    """Return what a worker raised, if it is one of our errors, or one that names worker and cause."""
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return TrainingError(f"The run failed: {str(error).strip()}")
    # One worker's error makes the others fail in their collectives: theirs is an echo.
    rank, cause = min(error.worker_failures.items(), key=lambda item: (_is_echo(item[1]), item[0]))
    cause = getattr(cause, "_base_exc", cause)
    return named(cause, rank, workers)


def _is_echo(error: Exception) -> bool:
    text = str(error).lower()
    return "connection closed by peer" in text or "connection reset" in text or "gloo" in text or "nccl" in text
