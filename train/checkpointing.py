"""From a run to a checkpoint and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

from shipline.checkpoint import WEIGHTS, Checkpoint, CheckpointManifest
from shipline.errors import ConfigError, IntegrityError, TrainingError
from shipline.lineage import without_secrets
from shipline.store import Publication, Store
from shipline.train.metrics import finite_or_none
from shipline.train.seed import rng_state, set_rng_state
from shipline.train.tree import dump_tree, load_tree, storable

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

STATE = "state/state.json"
STATE_TENSORS = "state/state.safetensors"


def save(trainer: Trainer, directory: Store, *, monitor: str | None = None, mode: Any = None) -> Checkpoint | None:
    """Commit the run as it is now to `directory`. Every worker calls it; the first writes and gets the checkpoint."""
    states = trainer.strategy.gather(_dump_rng())
    if trainer.strategy.rank != 0:
        trainer.strategy.barrier()
        return None
    module = trainer.module
    kept, lost = _plain(module.hparams)
    weights, tied = dump_weights(module)
    structure, tensors = dump_tree(_run_state(trainer) | {"rng": [load_tree(*state) for state in states]})
    manifest = CheckpointManifest(
        module=f"{type(module).__module__}.{type(module).__qualname__}",
        hyper_parameters=kept,
        not_rebuildable=lost,
        tied_weights=tied,
        epoch=trainer.current_epoch,
        global_step=trainer.global_step,
        metrics=finite_or_none(trainer.callback_metrics),
        monitor=monitor,
        mode=mode,
        lineage=trainer.lineage,
    )
    with Publication(directory) as publication:
        publication.add(WEIGHTS, weights)
        publication.add(STATE, structure)
        publication.add(STATE_TENSORS, tensors)
        manifest = publication.commit(manifest)
    trainer.strategy.barrier()
    return Checkpoint(directory, manifest)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer, schedulers, callbacks and generators back to where the checkpoint was made."""
    load_weights(trainer.module, checkpoint)
    state = load_tree(checkpoint.read(STATE), checkpoint.read(STATE_TENSORS))
    _restore_optimizer(trainer, state, checkpoint)
    if (order := _generator(trainer)) is not None and state.get("order") is not None:
        order.set_state(state["order"])
    for callback in trainer.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    trainer.epochs_done = trainer.current_epoch = state["epochs_done"]
    trainer.global_step = checkpoint.manifest.global_step
    if trainer.strategy.rank < len(state["rng"]):
        set_rng_state(state["rng"][trainer.strategy.rank])


def _restore_optimizer(trainer: Trainer, state: dict[str, Any], checkpoint: Checkpoint) -> None:
    try:
        trainer.optimizer.load_state_dict(state["optimizer"])
        for schedule, saved in zip(trainer.schedules, state["schedulers"], strict=True):
            schedule.scheduler.load_state_dict(saved)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"configure_optimizers returns another optimizer, or other schedulers, than {checkpoint} was made with: "
            f"{error}. Return the same to go on from it."
        ) from error


def dump_weights(module: nn.Module) -> tuple[bytes, dict[str, str]]:
    """Return the module's weights as safetensors, each shared tensor once, and which names share which."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise TrainingError(f"The module's extra state {name!r} is no tensor: keep it in a buffer.")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        tensors[name] = storable(tensor, name)
    return safetensors.torch.save(tensors), tied


def load_weights(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the checkpoint's weights into the module.

    Raises:
        IntegrityError: the file is damaged, or names or shapes differ from the module's; the message lists some.
    """
    tensors = checkpoint.weights(safetensors.torch.load)
    try:
        module.load_state_dict(tensors)
    except Exception as error:  # whatever a user's own hooks raise
        raise IntegrityError(
            f"The weights of {checkpoint} do not fit {type(module).__name__}: {str(error).strip()[:500]} "
            "Give the class and the constructor arguments that it was trained with."
        ) from error


def _generator(trainer: Trainer) -> torch.Generator | None:
    """What shuffles the rows, where the user gave the loader a generator of its own."""
    loader = trainer.train_loader
    return getattr(loader, "generator", None) or getattr(getattr(loader, "sampler", None), "generator", None)


def _run_state(trainer: Trainer) -> dict[str, Any]:
    order = _generator(trainer)
    return {
        "order": None if order is None else order.get_state(),
        "epochs_done": trainer.epochs_done,
        "optimizer": trainer.optimizer.state_dict(),
        "schedulers": [schedule.scheduler.state_dict() for schedule in trainer.schedules],
        "callbacks": {callback.state_key: callback.state_dict() for callback in trainer.callbacks},
    }


def _dump_rng() -> tuple[bytes, bytes]:
    return dump_tree(rng_state())


def _plain(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
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
