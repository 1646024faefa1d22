"""Tensors that are spread over workers (PyTorch's DTensor), beside tensors that are not.

Importing them takes two seconds, which a run without them need not wait for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_spread(tensor: Any) -> TypeGuard[DTensor]:
    """Whether the tensor is spread over workers."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "device_mesh")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of the tensor this worker holds."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tree: Any) -> Any:
    """Return a tree with its spread tensors whole, on the CPU; every worker that holds a part calls it."""
    if is_spread(tree):
        return tree.full_tensor().detach().cpu()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(whole, tree))
    return tree


def spread_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor spread as the parameter is; every worker has the same whole one, so nothing is sent."""
    if not is_spread(parameter) or is_spread(tensor) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def complete_gradients(module: nn.Module) -> None:
    """Let gradients of spread parameters be sums over the workers as soon as there are any.

    Where sequences are cut, PyTorch leaves those of what each worker has whole (a norm's weight) in as many summands
    until the optimizer steps: no checkpoint could keep them, and to limit a summand is not to limit the sum.
    """
    for parameter in module.parameters():
        if is_spread(parameter) and parameter.requires_grad:
            parameter.register_hook(partial(_completed, parameter.placements))  # type: ignore[no-untyped-call]


def _completed(placements: Any, gradient: DTensor) -> DTensor:
    summed = any(placement.is_partial() for placement in gradient.placements)
    return gradient.redistribute(placements=placements) if summed else gradient


def total_norm(gradients: Iterable[torch.Tensor], group: Any = None) -> torch.Tensor:
    """Return the 2-norm of gradients that may lie on different meshes, and on the workers of `group` in parts."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(gradient.device_mesh if is_spread(gradient) else None, []).append(gradient)
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds.values()]
    total = torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())
    if group is not None:
        squared = total.square()
        dist.all_reduce(squared, group=group)
        total = squared.sqrt()
    return total


def clip_norm(parameters: Iterable[torch.Tensor], most: float, group: Any = None) -> None:
    """Limit the norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` does for those of one worker."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    factor = (most / (total_norm(gradients, group) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        own = local(gradient)
        own.mul_(factor.to(own.device))


def clip_value(parameters: Iterable[torch.Tensor], most: float) -> None:
    """Limit each value of the gradients."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).clamp_(-most, most)
