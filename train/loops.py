"""The loops: fit, evaluate, predict. Each reads top to bottom; what plugs in is called at its hooks."""

from __future__ import annotations

import contextlib
from collections import ChainMap
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, TrainingError
from shipline.lineage import without_secrets
from shipline.train import checkpointing
from shipline.train.data import DataModule
from shipline.train.metrics import Stage
from shipline.train.module import Module
from shipline.train.optimizers import parse_optimizers
from shipline.train.run import CONFIG_FILE
from shipline.train.seed import isolate_rng
from shipline.train.strategy import SingleProcess, Step, step_of, to_device

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


def fit(
    trainer: Trainer, module: Module, data: DataModule, resume: Checkpoint | None, strategy: SingleProcess | None = None
) -> None:
    """Train on this worker, from the first epoch or from the checkpoint's."""
    with _stage(trainer, module, data, "fit", strategy):
        trainer.optimizer, trainer.schedules = parse_optimizers(module.configure_optimizers())
        trainer.train_loader = trainer.strategy.shard(data.train_dataloader(), shuffle=True)
        val_loader = trainer.strategy.shard(data.val_dataloader(), shuffle=False)
        if resume is not None:
            checkpointing.restore(trainer, resume)
        _begin_records(trainer, resume)
        trainer.hooks("on_fit_start")
        _sanity_check(trainer, val_loader)
        module.train()
        with _logging(trainer, "train"):
            trainer.hooks("on_train_start")
        step = trainer.strategy.training_step(module)
        while not _done(trainer):
            _train_epoch(trainer, step)
            _validate_epoch(trainer, val_loader)
            _end_epoch(trainer)
        trainer.current_epoch = trainer.epochs_done
        trainer.hooks("on_train_end")
        trainer.hooks("on_fit_end")


def evaluate(
    trainer: Trainer, module: Module, data: DataModule, stage: Literal["validate", "test"], limit: int | None
) -> dict[str, float]:
    """Return the metrics that the module's own step logs over the stage's data."""
    with _stage(trainer, module, data, stage, None):
        loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
        if loader is None:
            raise ConfigError(f"There is no data to {stage}: give a loader, or a DataModule that has one.")
        return _evaluate(trainer, loader, stage, limit)


def predict(trainer: Trainer, module: Module, data: DataModule) -> list[Any]:
    """Return what `predict_step` returns for each batch."""
    with _stage(trainer, module, data, "predict", None):
        loader = data.predict_dataloader()
        if loader is None:
            raise ConfigError("There is no data to predict: give a loader, or a DataModule that has one.")
        step = step_of(module, "predict_step")
        with _evaluating(module):
            return [step(to_device(batch, trainer.device), i) for i, batch in enumerate(loader)]


@contextlib.contextmanager
def _stage(
    trainer: Trainer, module: Module, data: DataModule, stage: str, strategy: SingleProcess | None
) -> Iterator[None]:
    """Set everything up for a stage and take it down again, whatever happens between."""
    trainer.prepare(module, data, strategy or SingleProcess())
    has_data = False
    try:
        if trainer.is_global_zero:
            data.prepare_data()
        trainer.strategy.barrier()
        data.setup(stage)
        has_data = True
        for callback in trainer.callbacks:
            callback.setup(trainer, module, stage)
        yield
    except BaseException as error:
        for callback in trainer.callbacks:
            callback.on_exception(trainer, module, error)
        raise
    finally:
        if trainer.is_global_zero and stage == "fit":
            for logger in trainer.loggers:
                logger.save()
        if has_data:
            data.teardown(stage)
        for callback in trainer.callbacks:
            callback.teardown(trainer, module, stage)


def _begin_records(trainer: Trainer, resume: Checkpoint | None) -> None:
    """Say what data this is, open the loggers and write down the settings."""
    if not trainer.is_global_zero:
        return
    with isolate_rng():
        trainer.lineage = trainer.lineage.model_copy(update={"data_fingerprint": trainer.data.fingerprint()})
    if trainer.run is None:
        return
    if trainer.config:
        trainer.run.store.write(CONFIG_FILE, yaml.safe_dump(without_secrets(trainer.config), sort_keys=False).encode())
    for logger in trainer.loggers:
        logger.open(trainer.run.store, resume.manifest.global_step if resume is not None else None)
        logger.log_hyperparams(trainer.module.hparams)


def _sanity_check(trainer: Trainer, loader: Any) -> None:
    """Try a few validation batches, so that a mistake there shows now and not after the first epoch."""
    steps = trainer.num_sanity_val_steps
    if trainer.limit_val_batches is not None:
        steps = min(steps, trainer.limit_val_batches)
    if loader is None or not steps:
        return
    trainer.sanity_checking = True
    for callback in trainer.callbacks:
        callback.on_sanity_check_start(trainer, trainer.module)
    with isolate_rng():
        _evaluate(trainer, loader, "validate", steps)
    trainer.callback_metrics.clear()
    trainer.epoch_progress.clear()
    trainer.metrics.forget_steps()
    for callback in trainer.callbacks:
        callback.on_sanity_check_end(trainer, trainer.module)
    trainer.sanity_checking = False


def _done(trainer: Trainer) -> bool:
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.max_epochs is not None and trainer.epochs_done >= trainer.max_epochs:
        return True
    # What one worker asks for holds for all: they must end together, or those left would wait for ever.
    return any(trainer.strategy.gather(trainer.should_stop)) and trainer.epochs_done >= trainer.min_epochs


def _train_epoch(trainer: Trainer, step: Step) -> None:  # noqa: C901 -- the loop is to be read in one piece
    """One pass over the training data: what runs for every batch stands here, and nowhere else."""
    hooks, metrics, device = trainer.hooks, trainer.metrics, trainer.device
    loader = trainer.train_loader
    trainer.current_epoch = trainer.epochs_done
    trainer.num_training_batches = _length(loader, trainer.limit_train_batches)
    if hasattr(getattr(loader, "sampler", None), "set_epoch"):
        loader.sampler.set_epoch(trainer.current_epoch)
    per_step = [schedule for schedule in trainer.schedules if schedule.interval == "step"]
    before_batch, after_batch = hooks.of("on_train_batch_start"), hooks.of("on_train_batch_end")
    optimize = _optimization(trainer)
    latest = ChainMap[str, Any](metrics.step, trainer.callback_metrics)
    move = device.type != "cpu"
    batch_idx = -1
    with _logging(trainer, "train"):
        hooks("on_train_epoch_start")
        for batch_idx, batch in enumerate(islice(loader, _limit(trainer))):
            if move:
                batch = to_device(batch, device)  # noqa: PLW2901
            metrics.begin_batch(batch)
            if -1 in [hook(batch, batch_idx) for hook in before_batch]:
                break
            outputs = step(batch, batch_idx)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            if loss is not None:
                optimize(loss)
            trainer.global_step += 1
            for schedule in per_step:
                if trainer.global_step % schedule.frequency == 0:
                    schedule.step(latest)
            for hook in after_batch:
                hook(outputs, batch, batch_idx)
            if trainer.global_step % trainer.log_every_n_steps == 0:
                _log_step(trainer)
        metrics.end_batch()
        if batch_idx < 0:
            raise TrainingError(
                "The training loader has no batch: check the dataset, batch_size and drop_last. An iterator is used up "
                "after one epoch; give what can be iterated again."
            )
        _step_schedules(trainer, plateau=False)


def _optimization(trainer: Trainer) -> Callable[[torch.Tensor], None]:
    """Return the function that turns a loss into an optimizer step."""
    optimizer, hooks = trainer.optimizer, trainer.hooks
    before_zero, before_backward = hooks.of("on_before_zero_grad"), hooks.of("on_before_backward")
    after_backward, before_step = hooks.of("on_after_backward"), hooks.of("on_before_optimizer_step")

    def optimize(loss: torch.Tensor) -> None:
        for hook in before_zero:
            hook(optimizer)
        optimizer.zero_grad()
        for hook in before_backward:
            hook(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        for hook in after_backward:
            hook()
        for hook in before_step:
            hook(optimizer)
        optimizer.step()

    return optimize


def _validate_epoch(trainer: Trainer, loader: Any) -> None:
    """Validate where this epoch is one to validate after."""
    due = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
    trainer.validated_this_epoch = due or loader is None
    if due and loader is not None:
        _evaluate(trainer, loader, "validate", trainer.limit_val_batches)
    if trainer.validated_this_epoch:
        _step_schedules(trainer, plateau=True)


def _end_epoch(trainer: Trainer) -> None:
    """Count the epoch, then let everybody see it finished: a checkpoint made now goes on with the next one."""
    trainer.epochs_done += 1
    with _logging(trainer, "train"):
        trainer.hooks("on_train_epoch_end")
    with _logging(trainer, "train"):  # those that monitor see what the others have logged just now
        trainer.hooks.monitors("on_train_epoch_end")


def _evaluate(trainer: Trainer, loader: Any, stage: Literal["validate", "test"], limit: int | None) -> dict[str, float]:
    if limit == 0:
        return {}
    hook = "validation" if stage == "validate" else "test"
    step = step_of(trainer.module, f"{hook}_step")
    metrics = trainer.metrics
    with _evaluating(trainer.module):
        with _logging(trainer, stage) as results:
            trainer.hooks(f"on_{hook}_start")
            trainer.hooks(f"on_{hook}_epoch_start")
            for batch_idx, batch in enumerate(islice(loader, limit)):
                batch = to_device(batch, trainer.device)  # noqa: PLW2901
                metrics.begin_batch(batch)
                step(batch, batch_idx)
            metrics.end_batch()
            trainer.hooks(f"on_{hook}_epoch_end")
        trainer.hooks(f"on_{hook}_end")
    return results


@contextlib.contextmanager
def _evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode it was in before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _logging(trainer: Trainer, stage: Stage) -> Iterator[dict[str, float]]:
    """Collect what the block logs, then reduce it over all workers and hand it on; the dict holds it afterwards."""
    results: dict[str, float] = {}
    with trainer.metrics.stage(stage):
        yield results
        epoch = trainer.metrics.reduce_epoch(trainer.strategy.gather)
    results.update(epoch.all)
    trainer.metrics.step.clear()  # or it would hide, later on, what another stage logs under the same name
    latest = epoch.steps | epoch.all
    trainer.callback_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in latest.items()})
    trainer.epoch_progress.update(epoch.shown)
    if epoch.logged and not trainer.sanity_checking:
        _log(trainer, epoch.logged)


def _log_step(trainer: Trainer) -> None:
    values = {name: float(value) for name, value in trainer.metrics.step_logged.items()}
    if values:
        _log(trainer, values)


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    trainer.logged_metrics.update(values)
    metrics = {"epoch": trainer.current_epoch, **values}
    step = int(metrics.pop("step", trainer.global_step))  # who logs a "step" chooses the axis
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


def _step_schedules(trainer: Trainer, *, plateau: bool) -> None:
    """Step those that go by epochs: before validation, or after it where they need its metric."""
    for schedule in trainer.schedules:
        due = schedule.interval == "epoch" and (trainer.current_epoch + 1) % schedule.frequency == 0
        if due and schedule.needs_metric == plateau:
            schedule.step(trainer.callback_metrics)


def _limit(trainer: Trainer) -> int | None:
    """How many batches to take in this epoch; None: all there are."""
    steps = trainer.max_steps - trainer.global_step if trainer.max_steps != -1 else None
    return min((n for n in (steps, trainer.limit_train_batches) if n is not None), default=None)


def _length(loader: Any, limit: int | None) -> int | None:
    try:
        batches = len(loader)
    except TypeError:
        return limit
    return batches if limit is None else min(batches, limit)
