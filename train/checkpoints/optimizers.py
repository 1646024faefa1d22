"""Optimizers' state by the names of parameters: numbers, as torch has them, mean others where workers hold parts."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError
from shipline.shards import ShardIndex
from shipline.train.checkpoints.shards import like, read_shards
from shipline.train.checkpoints.tree import Tensors


def named_state(module: nn.Module, optimizers: list[Optimizer]) -> tuple[list[dict[str, Any]], Tensors]:
    """Return what the optimizers hold, as plain data and as tensors by name; without what is on the meta device."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    plain: list[dict[str, Any]] = []
    tensors: Tensors = {}
    for number, optimizer in enumerate(optimizers):
        numbers: dict[str, dict[str, Any]] = {}
        for parameter, state in optimizer.state.items():
            name = names[parameter]
            numbers[name] = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
            tensors |= {_key(number, name, key): v for key, v in state.items() if isinstance(v, torch.Tensor)}
        groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
        ]
        plain.append({"param_groups": groups, "numbers": numbers})
    return plain, tensors


def together(everybody: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the plain part of all workers, some of whom step other parameters than others."""
    first, *others = everybody
    for own in others:
        for mine, theirs in zip(first, own, strict=True):
            mine["numbers"] = mine["numbers"] | theirs["numbers"]
    return first


def load_named(
    module: nn.Module,
    optimizers: list[Optimizer],
    saved: list[dict[str, Any]],
    checkpoint: Checkpoint,
    index: ShardIndex,
) -> None:
    """Put the optimizers into the state of `named_state`, of which this worker reads its parts.

    Raises:
        ConfigError: they are others.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    targets: Tensors = {}
    states: list[dict[int, dict[str, Any]]] = []
    for number, (optimizer, state) in enumerate(zip(optimizers, saved, strict=True)):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        have = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        if have != [group["params"] for group in state["param_groups"]]:
            raise ConfigError(f"the optimizer {number} has other parameters than the checkpoint's, or in other groups")
        filled = [_of_parameter(number, names[p], p, state["numbers"], index) for p in parameters]
        targets |= {key: tensor for tensors, _ in filled for key, tensor in tensors.items()}
        states.append({place: own for place, (_, own) in enumerate(filled) if own})
    read_shards(checkpoint, index, targets)
    for optimizer, state, own in zip(optimizers, saved, states, strict=True):
        ids = count()
        groups = [{**group, "params": [next(ids) for _ in group["params"]]} for group in state["param_groups"]]
        optimizer.load_state_dict({"state": own, "param_groups": groups})


def _of_parameter(
    number: int, name: str, parameter: torch.Tensor, numbers: dict[str, dict[str, Any]], index: ShardIndex
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors to fill for a parameter, by their names in the checkpoint, and its state, which holds them."""
    if name not in numbers or parameter.is_meta:
        return {}, {}
    prefix = _key(number, name, "")
    tensors = {key: like(index, key, parameter) for key in index.root if key.startswith(prefix)}
    return tensors, numbers[name] | {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _key(number: int, name: str, key: str) -> str:
    return f"optimizers/{number}/{name}/{key}"
