"""A run that leaves a checkpoint, and what no checkpoint can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from training import Mlp, new_trainer, train_loader, val_loader

import shipline as sl


class Thing:
    """No plain data."""


def train(root: str | Path, module: Any = None) -> sl.train.Run:
    """Train a module, or a small network, for an epoch."""
    torch.manual_seed(0)
    return new_trainer(root, max_epochs=1).fit(module or Mlp(hidden=8), train_loader(64), val_loader(32))
