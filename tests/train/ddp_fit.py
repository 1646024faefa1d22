"""A fit by one of several workers of a process group, and its weights to compare with those of others."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.strategies import pick_strategy


def fingerprint(module: torch.nn.Module) -> list[float]:
    """Weights as numbers that JSON holds exactly."""
    return [float(tensor.double().sum()) for tensor in module.state_dict().values()]


def difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The greatest between their weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def fit(trainer: sl.Trainer, module: Any, train: Any, val: Any = None, resume: str | None = None) -> None:
    checkpoint = None if resume is None else open_checkpoint(resume)
    loops.fit(trainer, module, Loaders(train, val), checkpoint, pick_strategy("auto", dist.get_world_size()))
