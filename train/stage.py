"""A stage of a run: what is set up before its loop, and taken down after it whatever happens."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.checkpoint import Checkpoint
from shipline.errors import StoreError, TrainingError
from shipline.train.distributed.watchdog import watched

if TYPE_CHECKING:
    from shipline.train.data import DataModule
    from shipline.train.module import Module
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

Stage = Literal["fit", "validate", "test", "predict"]
#: A stage, or a function of the user's own.
Work = Stage | Literal["run"]


@contextlib.contextmanager
def prepared(
    trainer: Trainer, module: Module, data: DataModule, stage: Stage, strategy: Strategy | None
) -> Iterator[None]:
    """Set everything up for a stage and take it down again, whatever happens between."""
    with trainer.joined(module, data, stage, strategy), trainer.signals.handled(trainer.requeue_signal):
        has_data = False
        failure: BaseException | None = None
        try:
            _prepare_data(trainer)
            trainer.hooks.data("setup", stage)
            has_data = True
            trainer.hooks("setup", stage)
            with trainer.precision_plugin.init_context():
                trainer.hooks.method("configure_model")()
            trainer.move_module()
            with _torch_modes(trainer), watched(trainer):
                yield
        except BaseException as error:
            failure = explained = _explained(error)
            trainer.hooks("on_exception", explained)
            trainer.hooks.data("on_exception", explained)
            if explained is error:
                raise
            raise explained from error
        finally:
            _take_down(trainer, stage, has_data, failure)


def _prepare_data(trainer: Trainer) -> None:
    """One worker downloads while the others wait."""
    if trainer.is_global_zero:
        trainer.hooks.data("prepare_data")
        trainer.hooks.method("prepare_data")()
    trainer.strategy.barrier()


def _take_down(trainer: Trainer, stage: Stage, has_data: bool, failure: BaseException | None) -> None:
    """Write what is to be written, first of all; then let everybody clean up."""
    with contextlib.ExitStack() as todo:
        todo.callback(trainer.accelerator.teardown)
        todo.callback(trainer.profiler.teardown, stage)
        todo.callback(trainer.precision_plugin.release, trainer.module)
        todo.callback(trainer.hooks, "teardown", stage)
        if has_data:
            todo.callback(trainer.hooks.data, "teardown", stage)
        if trainer.is_global_zero:
            (end_records if stage == "fit" else end_loggers)(trainer, todo, failure)
        todo.callback(trainer.fit_data.close)
        todo.callback(trainer.saver.writer.close)


def end_records(trainer: Trainer, todo: contextlib.ExitStack, failure: BaseException | None) -> None:
    """Let `todo` end with the last words of a run's loggers, and of its records."""
    todo.push(lambda _kind, error, _trace: trainer.records.end(trainer, failure or error))
    end_loggers(trainer, todo, failure)


def end_loggers(trainer: Trainer, todo: contextlib.ExitStack, failure: BaseException | None) -> None:
    """Let `todo` end with the last words of the loggers; they hear whether the stage has failed."""
    outcome = "success" if failure is None else "failed"
    for each in reversed(trainer.loggers):
        todo.push(partial(_written, partial(each.finalize, outcome), failure))
        todo.push(partial(_written, each.save, failure))


def _written(
    write: Callable[[], None], failure: BaseException | None, _kind: Any, error: BaseException | None, _trace: Any
) -> None:
    """Let a logger write what it has; what has ended the run is the error that is to be seen."""
    try:
        write()
    except StoreError as late:
        if failure is None and error is None:
            raise
        logger.error("%s", late)


@contextlib.contextmanager
def _torch_modes(trainer: Trainer) -> Iterator[None]:
    """What the Trainer switches on in torch itself, as it was before afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, cublas = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    if trainer.deterministic is not None:
        torch.use_deterministic_algorithms(bool(trainer.deterministic), warn_only=trainer.deterministic == "warn")
    if trainer.deterministic:
        os.environ.setdefault(_CUBLAS, ":4096:8")  # without it cuBLAS may add in another order each time
    if trainer.benchmark is not None or trainer.deterministic:  # a benchmark may choose another algorithm each time
        torch.backends.cudnn.benchmark = bool(trainer.benchmark)
    try:
        with torch.autograd.set_detect_anomaly(trainer.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = cudnn
        if cublas is None:
            os.environ.pop(_CUBLAS, None)


_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_DYING_S = 5  # a process may take so long from the end of its connections to its own


def begin_records(trainer: Trainer, resume: Checkpoint | None) -> None:
    """Open the loggers, and begin to write down what the run is made of."""
    if not trainer.is_global_zero:
        return
    hparams = dict(trainer.module.hparams)
    trainer.records.begin(trainer, hparams, resumed=resume is not None)
    for each in trainer.loggers:
        store = None if trainer.run_directory is None else trainer.run_directory.store
        each.open(store, trainer.progress.first_unlogged() if resume is not None else None)
        if trainer.enable_autolog_hparams and hparams:
            each.log_hyperparams(hparams)
        each.log_graph(trainer.module)


def _explained(error: BaseException) -> BaseException:
    """Say of a data worker that died what has happened; the rest is what it is."""
    death = _death(error)
    if death is None:
        return error
    return TrainingError(
        f"A worker process of the DataLoader died: {str(death).strip() or type(death).__name__} If memory ran out, "
        "lower num_workers or prefetch_factor; if a row crashes it, num_workers=0 shows which. Resume with "
        "ckpt_path='last'."
    )


def _death(error: BaseException) -> BaseException | None:
    """Return what tells of a data worker's death, None where none has died.

    PyTorch raises a RuntimeError once, in whichever line the main thread is when the signal comes. A connection to the
    worker may fail before that: then its error is waited for, lest it come in the midst of taking down.
    """
    if isinstance(error, RuntimeError):
        return error if "DataLoader worker (pid" in str(error) else None
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return None
    try:
        frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(name.endswith(str(Path("torch/utils/data/dataloader.py"))) for name in frames):
            return None
        if "multiprocessing" not in frames[-1]:
            return None
        for _ in range(_DYING_S * 100):
            torch._C._error_if_any_worker_fails()  # noqa: SLF001 -- it has no public name
            time.sleep(0.01)
    except RuntimeError as late:
        return late
    return error
