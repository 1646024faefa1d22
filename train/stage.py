"""A stage of a run: what is set up before its loop, and taken down after it whatever happens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch

from shipline.checkpoint import Checkpoint
from shipline.errors import TrainingError
from shipline.train.run import CONFIG_FILE

if TYPE_CHECKING:
    from shipline.train.data import DataModule
    from shipline.train.module import Module
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

Stage = Literal["fit", "validate", "test", "predict"]


@contextlib.contextmanager
def prepared(
    trainer: Trainer, module: Module, data: DataModule, stage: Stage, strategy: Strategy | None
) -> Iterator[None]:
    """Set everything up for a stage and take it down again, whatever happens between."""
    with trainer.joined(module, data, stage, strategy), trainer.signals.handled():
        has_data = False
        try:
            _prepare_data(trainer)
            trainer.hooks.data("setup", stage)
            has_data = True
            trainer.hooks("setup", stage)
            with trainer.precision_plugin.init_context():
                module.configure_model()
            trainer.move_module()
            with _torch_modes(trainer):
                yield
        except BaseException as error:
            explained = _explained(error)
            trainer.hooks("on_exception", explained)
            trainer.hooks.data("on_exception", explained)
            if explained is error:
                raise
            raise explained from error
        finally:
            _take_down(trainer, stage, has_data)


def _prepare_data(trainer: Trainer) -> None:
    """One worker downloads while the others wait."""
    if trainer.is_global_zero:
        trainer.hooks.data("prepare_data")
        trainer.module.prepare_data()
    trainer.strategy.barrier()


def _take_down(trainer: Trainer, stage: Stage, has_data: bool) -> None:
    """Write what is to be written, first of all; then let everybody clean up."""
    with contextlib.ExitStack() as todo:
        todo.callback(trainer.accelerator.teardown)
        todo.callback(trainer.precision_plugin.release, trainer.module)
        todo.callback(trainer.hooks, "teardown", stage)
        if has_data:
            todo.callback(trainer.hooks.data, "teardown", stage)
        if trainer.profiler is not None:
            todo.callback(trainer.profiler.teardown, stage)
        if trainer.is_global_zero and stage == "fit":
            for each in reversed(trainer.loggers):
                todo.callback(each.finalize, "success" if trainer.succeeded else "failed")
                todo.callback(each.save)
        todo.callback(trainer.saver.writer.close)


@contextlib.contextmanager
def _torch_modes(trainer: Trainer) -> Iterator[None]:
    """What the Trainer switches on in torch itself, as it was before afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if trainer.deterministic is not None:
        torch.use_deterministic_algorithms(bool(trainer.deterministic), warn_only=trainer.deterministic == "warn")
    if trainer.benchmark is not None:
        torch.backends.cudnn.benchmark = trainer.benchmark
    try:
        with torch.autograd.set_detect_anomaly(trainer.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def begin_records(trainer: Trainer, resume: Checkpoint | None) -> None:
    """Open the loggers and write down the settings."""
    if not trainer.is_global_zero:
        return
    if trainer.run_directory is not None:
        trainer.run_directory.store.write(CONFIG_FILE, trainer.description.to_yaml())
    for each in trainer.loggers:
        store = None if trainer.run_directory is None else trainer.run_directory.store
        each.open(store, trainer.progress.first_unlogged() if resume is not None else None)
        if trainer.enable_autolog_hparams:
            each.log_hyperparams(dict(trainer.module.hparams))


def _explained(error: BaseException) -> BaseException:
    """A data worker that died says so wherever the process happens to be; the rest is what it is."""
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker (pid" not in text:
        return error
    return TrainingError(
        f"A worker process of the DataLoader died: {text.strip()} If memory ran out, lower num_workers or "
        "prefetch_factor; if a row crashes it, num_workers=0 shows which. Resume with ckpt_path='last'."
    )
