"""Checkpoints of strategies whose workers hold a part each: all write, nobody ever holds the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shipline.checkpoint import STATE, STATE_INDEX, STATE_TENSORS, WEIGHTS_INDEX, Checkpoint, CheckpointManifest
from shipline.store import Publication
from shipline.store.store import Data
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.optimizers import load_named, named_state, together
from shipline.train.checkpoints.saver import commit
from shipline.train.checkpoints.shards import Shares, like, read_shards
from shipline.train.checkpoints.together import Together
from shipline.train.checkpoints.tree import Tensors, encode_tree
from shipline.train.strategies.tensors import whole

if TYPE_CHECKING:
    from shipline.train.checkpoints.save import Wanted
    from shipline.train.trainer import Trainer


@dataclass
class ShardSaver:
    """What stays from one checkpoint to the next: plans, and memory for the copies."""

    weights: Shares = field(default_factory=lambda: Shares("weights"))
    state: Shares = field(default_factory=lambda: Shares("state/shards"))
    images: tuple[Image, Image, Image] = field(default_factory=lambda: (Image(), Image(), Image()))


def save_sharded(
    trainer: Trainer,
    wanted: Wanted,
    weights: Tensors,
    state: Callable[[], dict[str, Any]],
    manifest: Callable[[], CheckpointManifest],
) -> None:
    """Copy this worker's parts, and commit them together with those of all others, in the background.

    Args:
        trainer: of the run.
        wanted: where to, and what.
        weights: of the module, each shared tensor once.
        state: returns what only a resumed run needs, but for what is held in parts; the first worker's counts.
        manifest: returns what the checkpoint says of itself; called on the first worker.
    """
    saver, strategy = trainer.saver, trainer.strategy
    saver.writer.wait()  # the images are still being written
    shards = saver.shards = saver.shards or ShardSaver()
    weights_image, shards_image, state_image = shards.images
    files: dict[str, Data] = {}
    _add(files, WEIGHTS_INDEX, shards.weights, weights_image, weights, trainer)
    if not wanted.weights_only:
        plain, tensors = named_state(trainer.module, trainer.optimizers)
        optimizers = together(strategy.gather(whole(plain)))
        tensors |= _gradients(trainer.module) if trainer.holds_gradients() else {}
        _add(files, STATE_INDEX, shards.state, shards_image, tensors, trainer)
        content = {**state(), "optimizers": optimizers}
        if strategy.rank == 0:
            files[STATE], tensors = encode_tree(content)
            files[STATE_TENSORS] = state_image.fill(tensors)
    finish = partial(_commit, manifest() if strategy.rank == 0 else None, wanted.replace)
    first = [each.save for each in trainer.loggers]  # a resumed run counts on the rows up to here
    Together(strategy, saver.writer, wanted.directory, first, finish, wanted.then).submit(files)


def _add(
    files: dict[str, Data], index_name: str, shares: Shares, image: Image, tensors: Tensors, trainer: Trainer
) -> None:
    """Add this worker's file of the parts that it writes; the first worker's index says where all lie."""
    strategy = trainer.strategy
    parts, index = shares.plan(tensors, strategy)
    if parts:
        files[shares.file(strategy.rank, strategy.world_size)] = image.fill(parts)
    if strategy.rank == 0:
        files[index_name] = index.model_dump_json().encode()


def _commit(manifest: CheckpointManifest | None, replace: bool, publication: Publication) -> None:
    assert manifest is not None  # called on the first worker only
    commit(publication, manifest, replace)


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return which names mean a parameter or buffer that has another name, too."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: other for name, tensor in named if (other := first.setdefault(id(tensor), name)) != name}


def restore_shards(trainer: Trainer, saved: list[dict[str, Any]], checkpoint: Checkpoint) -> None:
    """Put optimizers, and gradients that a later step will use, into the state that lies in parts.

    Raises:
        ConfigError: the optimizers are others.
        IntegrityError: the checkpoint is damaged.
    """
    index = checkpoint.index(STATE_INDEX)
    load_named(trainer.module, trainer.optimizers, saved, checkpoint, index)
    named = dict(trainer.module.named_parameters())
    held = {key: name for name in named if (key := _gradient_key(name)) in index.root and not named[name].is_meta}
    gradients = {key: like(index, key, named[name]) for key, name in held.items()}
    read_shards(checkpoint, index, gradients)
    for key, name in held.items():
        named[name].grad = gradients[key]


def _gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    named = module.named_parameters()
    return {_gradient_key(name): parameter.grad for name, parameter in named if parameter.grad is not None}


def _gradient_key(name: str) -> str:
    return f"gradients/{name}"
