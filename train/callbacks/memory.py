"""How much memory the training of a module takes, before it has begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

#: How many tensors of a parameter's size torch's own optimizers keep for it, by their settings.
_KEPT: dict[str, Callable[[dict[str, Any]], int]] = {
    "SGD": lambda group: bool(group["momentum"]),
    "Adam": lambda group: 2 + group["amsgrad"],
    "AdamW": lambda group: 2 + group["amsgrad"],
    "NAdam": lambda _group: 2,
    "RAdam": lambda _group: 2,
    "Adamax": lambda _group: 2,
    "Adadelta": lambda _group: 2,
    "RMSprop": lambda group: 1 + (group["momentum"] > 0) + group["centered"],
    "Rprop": lambda _group: 2,
    "ASGD": lambda _group: 1,
    "Muon": lambda _group: 1,
}


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters."""
    return sum(map(_bytes, module.parameters()))


def gradient_bytes(module: nn.Module) -> int:
    """Return the bytes that the gradients will take."""
    return sum(_bytes(p) for p in module.parameters() if p.requires_grad)


def optimizer_bytes(optimizers: Iterable[Optimizer]) -> int | None:
    """Return the bytes that the optimizers keep, or will after their first step; None where that is not known."""
    sizes = [_kept(optimizer) for optimizer in optimizers]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _kept(optimizer: Optimizer) -> int | None:
    there = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    kind = next((cls.__name__ for cls in type(optimizer).__mro__ if cls.__name__ in _KEPT), None)
    if there or kind is None:
        return sum(map(_bytes, there)) if there else None
    groups = optimizer.param_groups
    return sum(_KEPT[kind](group) * sum(_bytes(p) for p in group["params"] if p.requires_grad) for group in groups)


def _bytes(tensor: torch.Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()
