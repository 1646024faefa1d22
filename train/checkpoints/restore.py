"""From a checkpoint back to a run."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from shipline.checkpoint import STATE, STATE_TENSORS, Checkpoint, checkpoints_beside, open_checkpoint
from shipline.errors import ConfigError, IntegrityError, NotFoundError
from shipline.train.checkpoints.tree import decode_tree, read_tensors
from shipline.train.checkpoints.weights import load_weights, load_whole
from shipline.train.hooks import overrides
from shipline.train.metrics.objects import load_metric_states
from shipline.train.strategies.tensors import spread_like

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put weights, optimizers, schedulers, callbacks, counters and metrics back to where the checkpoint was made.

    Generators and loaders follow when training begins: what hooks draw until then must not count.

    Raises:
        ConfigError: the checkpoint holds weights only, or the optimizers are others than it was made with.
        IntegrityError: it is damaged, or not of this module.
    """
    if STATE not in checkpoint:
        raise ConfigError(
            f"{checkpoint} holds weights only, so no run can go on from it: load them with load_from_checkpoint, or "
            "resume from one made with save_weights_only=False."
        )
    with checkpoint.kept():
        _restore(trainer, checkpoint)


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state = read_state(checkpoint)
    own = own_state(*_shares(state, trainer.strategy))
    seen = {**state["module"], "callbacks": state["callbacks"]}
    load_weights(trainer.module, checkpoint, partial(trainer.hooks, "on_load_checkpoint"), seen)
    _restore_optimizers(trainer, state, checkpoint)
    trainer.precision_plugin.load_state_dict(state["precision"])
    for key, callback in trainer.callbacks_by_key().items():
        if state["callbacks"].get(key):
            callback.load_state_dict(state["callbacks"][key])
    if state["data"]:
        trainer.data.load_state_dict(state["data"])
    for each, saved in zip(trainer.loggers, state["loggers"], strict=False):
        if saved:
            each.load_state_dict(saved)
    trainer.progress.load_state_dict(state["progress"])
    trainer.restore_metrics(state["metrics"], own["epoch_metrics"])
    load_metric_states(trainer.module, own["metric_states"])
    _restore_gradients(trainer.module, own["gradients"])
    trainer.resumed = own


def _shares(state: dict[str, Any], strategy: Strategy) -> tuple[dict[str, Any], int, int]:
    """Return the state, a worker's number in it, and how many there are now.

    Where workers hold parts of one model, they go on as the ones that they are if all are arranged as before; else
    shares of the rows go on, whoever has them.
    """
    workers = state["workers"]
    places, rank = state.get("data_ranks", list(range(len(workers)))), strategy.rank
    alike = (len(places), len(set(places))) == (strategy.world_size, strategy.data_world_size)
    if alike and places[rank] == strategy.data_rank:
        return state, rank, strategy.world_size
    last = dict(zip(places, workers, strict=True))  # of each share, the worker that knows its results
    return {**state, "workers": [last[place] for place in sorted(last)]}, strategy.data_rank, strategy.data_world_size


def own_state(state: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Return what a worker goes on with, of the states of the workers of a checkpoint, who may be more, or fewer.

    Other workers go on after the last step: what each had gathered towards the next is left out. The first takes over
    what those have counted who are no more.
    """
    workers, share = state["workers"], state.get("share")
    own = workers[min(rank, len(workers) - 1)]
    if len(workers) == world_size:
        same = {"epoch_metrics": [own["epoch_metrics"]], "metric_states": [own["metric_states"]]}
        return {**own, **same, "share": share}
    known = rank < len(workers)
    gone = [theirs["metric_states"] for theirs in workers[world_size:]] if rank == 0 else []
    return {
        **own,
        "rng": own["rng"] if known else None,  # a new worker has been seeded by its rank
        "train_feed": own["train_feed"] if known or not own["train_feed"] else {**own["train_feed"], "own": []},
        "epoch_metrics": [theirs["epoch_metrics"] for theirs in workers] if rank == 0 else [],
        "metric_states": [own["metric_states"], *gone] if known else [],
        "gradients": {},
        "validation_feeds": [],
        "share": None if share is None else {**share, "moves": True},
    }


def load_module(module: Module, checkpoint: Checkpoint, strict: bool = True) -> None:
    """Load the checkpoint's weights, and what the module itself put into it.

    Raises:
        IntegrityError: it is damaged, or not of this module.
    """
    with checkpoint.kept():
        has_own = overrides(module, "on_load_checkpoint") and STATE in checkpoint
        own = read_state(checkpoint)["module"] if has_own else {}
        load_weights(module, checkpoint, module.on_load_checkpoint, own, strict, load_whole)


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state of the run in a checkpoint."""
    state: dict[str, Any] = decode_tree(checkpoint.read(STATE), read_tensors(checkpoint.read(STATE_TENSORS)))
    return state


def find_checkpoint(url: str) -> Checkpoint:
    """Return the checkpoint at `url`, all of whose files are what was committed.

    Where `url` is the newest of a run ("…/last") and that is damaged, the newest good one before it is taken.

    Raises:
        NotFoundError: there is none.
        IntegrityError: it is damaged, and there is no other.
    """
    try:
        return _whole(open_checkpoint(url))
    except (IntegrityError, NotFoundError) as error:
        if not url.endswith("/last"):
            raise
        for candidate in checkpoints_beside(url):
            with contextlib.suppress(IntegrityError):
                found = _whole(candidate)
                logger.warning("%s Going on from the one before: %s. Nothing was deleted.", error, found)
                return found
        raise


def newest(urls: list[str]) -> Checkpoint:
    """Return the newest of the checkpoints at these URLs, each found as above; NotFoundError where there is none."""
    found, missing = [], []
    for url in urls:
        try:
            found.append(find_checkpoint(url))
        except NotFoundError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return max(found, key=lambda checkpoint: checkpoint.manifest.created_at)


def _whole(checkpoint: Checkpoint) -> Checkpoint:
    """Read every file once: what is damaged must be found before anything of the run has changed."""
    with checkpoint.kept():
        for name in checkpoint.manifest.files:
            checkpoint.read(name)
    return checkpoint


def _restore_optimizers(trainer: Trainer, state: dict[str, Any], checkpoint: Checkpoint) -> None:
    try:
        if checkpoint.is_sharded:
            from shipline.train.checkpoints.sharded import restore_shards

            restore_shards(trainer, state["optimizers"], checkpoint)
        else:
            for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(_spread(optimizer, saved))
        for schedule, saved in zip(trainer.schedules, state["schedulers"], strict=True):
            schedule.scheduler.load_state_dict(saved)
    except (ValueError, KeyError, ConfigError) as error:
        raise ConfigError(
            f"configure_optimizers returns another optimizer, or other schedulers, than {checkpoint} was made with: "
            f"{error}. Return the same to go on from it."
        ) from error


def _spread(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with its whole tensors spread as the parameters are that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            key: spread_like(value, parameters[number]) if isinstance(value, torch.Tensor) else value
            for key, value in own.items()
        }
        for number, own in saved["state"].items()
    }
    return {**saved, "state": state}


def _restore_gradients(module: nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters[name]
        parameter.grad = spread_like(gradient.to(parameter.device, parameter.dtype), parameter)
