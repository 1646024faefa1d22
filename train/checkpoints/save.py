"""What of a run a checkpoint keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shipline.checkpoint import CheckpointManifest
from shipline.lineage import without_secrets
from shipline.store import Store
from shipline.train.checkpoints.weights import split_tied
from shipline.train.metrics import finite_or_none
from shipline.train.options.arguments import constructor_arguments
from shipline.train.strategies.tensors import whole

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


def save(
    trainer: Trainer,
    directory: Store,
    *,
    monitor: str | None = None,
    mode: Any = None,
    weights_only: bool = False,
    replace: bool = False,
    then: Callable[[], None] | None = None,
) -> None:
    """Commit the run as it is now to `directory`. Every worker calls it; the first one writes, in the background.

    Args:
        trainer: of the run.
        directory: for this checkpoint alone.
        monitor: the metric that decided to keep it.
        mode: "min" or "max" of that metric is best.
        weights_only: leave out what only a resumed run needs.
        replace: a checkpoint that is there already.
        then: called when the checkpoint is committed, in the thread that writes.

    Raises:
        TrainingError: the checkpoint before could not be written; or something in the state cannot be kept.
    """
    submit = trainer.hooks.profiled("save_checkpoint", _submit)
    submit(trainer, Wanted(directory, monitor, mode, weights_only, replace, then))


@dataclass(frozen=True)
class Wanted:
    """A checkpoint that is to be written: arguments of `save`."""

    directory: Store
    monitor: str | None
    mode: Any
    weights_only: bool
    replace: bool
    then: Callable[[], None] | None


def prepare(trainer: Trainer, *, weights_only: bool = False) -> None:
    """Take the memory that a checkpoint will be copied into, in the background: the first then costs what others do.

    Args:
        trainer: of a run that has taken its first step, so that its optimizers have their state.
        weights_only: as the checkpoints will be.
    """
    if trainer.strategy.rank != 0 or trainer.strategy.shards_weights:
        return
    module = trainer.module
    trainer.saver.weights.reserve([*module.parameters(), *module.buffers()])
    if not weights_only:
        states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
        values = [value for state in states if isinstance(state, dict) for value in state.values()]
        trainer.saver.state.reserve([value for value in values if isinstance(value, torch.Tensor)])


def _submit(trainer: Trainer, wanted: Wanted) -> None:
    trainer.clock.mark("checkpoint of step", trainer.global_step)
    trainer.loss_check.look()  # weights that came of a loss that is not finite are not to be kept
    content = _content(trainer)
    everybody = [] if wanted.weights_only else trainer.strategy.gather(_of_this_worker(trainer))
    (_submit_sharded if trainer.strategy.shards_weights else _submit_whole)(trainer, wanted, content, everybody)


def _submit_sharded(trainer: Trainer, wanted: Wanted, content: dict[str, Any], everybody: list[Any]) -> None:
    from shipline.train.checkpoints.sharded import save_sharded, tied_names

    tied = tied_names(trainer.module)
    state_dict = content.pop("state_dict")
    weights = {name: tensor for name, tensor in state_dict.items() if name not in tied and not tensor.is_meta}
    callbacks = {} if wanted.weights_only else whole(_of_callbacks(trainer))
    data_ranks = trainer.strategy.gather(trainer.strategy.data_rank)

    def state() -> dict[str, Any]:
        return _of_the_run(trainer, callbacks) | {
            "module": whole(_own(content)), "workers": everybody, "data_ranks": data_ranks,
        }  # fmt: skip

    save_sharded(trainer, wanted, weights, state, partial(_manifest, trainer, tied, wanted))


def _submit_whole(trainer: Trainer, wanted: Wanted, content: dict[str, Any], everybody: list[Any]) -> None:
    optimizers = [] if wanted.weights_only else [trainer.strategy.optimizer_state(each) for each in trainer.optimizers]
    if trainer.strategy.rank != 0:
        return
    tensors, tied = split_tied(content.pop("state_dict"))
    state = None
    if not wanted.weights_only:
        state = _of_the_run(trainer, _of_callbacks(trainer))
        state |= {"optimizers": optimizers, "module": _own(content), "workers": everybody}
    trainer.saver.save(
        wanted.directory,
        tensors,
        state,
        _manifest(trainer, tied, wanted),
        first=[each.save for each in trainer.loggers],  # a resumed run counts on the rows up to here
        replace=wanted.replace,
        then=wanted.then,
    )


def _manifest(trainer: Trainer, tied: dict[str, str], wanted: Wanted) -> CheckpointManifest:
    module = trainer.module
    kind = trainer.strategy.class_of(module)
    kept, lost = plain_arguments(constructor_arguments(module))
    return CheckpointManifest(
        module=f"{kind.__module__}.{kind.__qualname__}",
        hyper_parameters=kept,
        not_rebuildable=lost,
        tied_weights=tied,
        epoch=trainer.current_epoch,
        global_step=trainer.global_step,
        metrics=finite_or_none(trainer.callback_metrics),
        monitor=wanted.monitor,
        mode=wanted.mode,
        lineage=trainer.lineage,
    )


def _content(trainer: Trainer) -> dict[str, Any]:
    """What hooks see of a checkpoint, and may add to."""
    content: dict[str, Any] = {
        "state_dict": trainer.module.state_dict(), "epoch": trainer.current_epoch, "global_step": trainer.global_step,
        "hyper_parameters": dict(trainer.module.hparams),
    }  # fmt: skip
    trainer.hooks("on_save_checkpoint", content)
    return content


def _own(content: dict[str, Any]) -> dict[str, Any]:
    given = ("state_dict", "epoch", "global_step", "hyper_parameters")
    return {name: value for name, value in content.items() if name not in given}


def _of_callbacks(trainer: Trainer) -> dict[str, Any]:
    return {key: callback.state_dict() for key, callback in trainer.callbacks_by_key().items()}


def _of_the_run(trainer: Trainer, callbacks: dict[str, Any]) -> dict[str, Any]:
    """What all workers have in common."""
    return {
        "progress": trainer.progress.state_dict(),
        "share": trainer.fit_data.share_state(),
        "schedulers": [schedule.scheduler.state_dict() for schedule in trainer.schedules],
        "precision": trainer.precision_plugin.state_dict(),
        "callbacks": callbacks,
        "data": trainer.data.state_dict(),
        "loggers": [each.state_dict() for each in trainer.loggers],
        "metrics": {
            "callback": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "logged": dict(trainer.logged_metrics),
            "shown": dict(trainer.epoch_progress),
        },
    }


def _of_this_worker(trainer: Trainer) -> dict[str, Any]:
    """What each worker has of its own."""
    module = trainer.module
    return {
        # Of a validation that will be begun again, what it has drawn, loaded and counted so far does not count.
        **(trainer.before_validation or trainer.interruptible_state()),
        "train_feed": trainer.fit_data.train_state(trainer.progress.batches),
        "epoch_metrics": trainer.metrics.entries_state("train"),
        "gradients": _gradients(module) if trainer.holds_gradients() and not trainer.strategy.shards_weights else {},
    }


def _gradients(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def plain_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that JSON holds exactly, and the names of the others. Credentials do not travel."""
    kept: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in arguments.items():
        try:
            stored = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            lost.append(name)
            continue
        # A tuple comes back as a list, which constructors take; anything else must come back as itself.
        if stored == _tuples_as_lists(value) and without_secrets({name: stored}) == {name: stored}:
            kept[name] = stored
        else:
            lost.append(name)
    return kept, lost


def _tuples_as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_tuples_as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    return value
