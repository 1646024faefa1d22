"""Modules made on the meta device: their weights get memory and values only when their turn comes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.train.seed import current_seed, isolate_rng
from shipline.train.strategies.tensors import is_spread

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def names_of(module: nn.Module) -> dict[nn.Module, str]:
    """Return the name of each part of a module."""
    return {part: name for name, part in module.named_modules()}


def materialized(unit: nn.Module, device: torch.device, names: Mapping[nn.Module, str]) -> None:
    """Give the parts of a unit that are on the meta device memory, and values by their `reset_parameters`.

    The values depend on the seed and on a part's name alone: however a module is divided among workers, and whatever
    each has drawn before, it begins with the same ones.

    Args:
        unit: a module, or a part of one.
        device: to have them on.
        names: of the parts within the whole module.

    Raises:
        ConfigError: a part has weights and no way to give them values.
    """
    for part in list(unit.modules()):
        if not _is_meta(part):
            continue
        name = names.get(part, "")
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if reset is None:
            raise ConfigError(
                f"{name or type(part).__name__} ({type(part).__name__}) was made on the meta device, and has no "
                "reset_parameters that would give its weights values: define it, or make the module on the CPU."
            )
        # Of a layer that is cut, each worker makes the whole, and keeps its part: drawn by parts, all would be alike.
        cut = {key: parameter for key, parameter in part.named_parameters(recurse=False) if is_spread(parameter)}
        for key, parameter in cut.items():
            setattr(part, key, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")))
        part.to_empty(device=device, recurse=False)
        with isolate_rng(zlib.crc32(name.encode(), current_seed() or 0)), torch.no_grad():
            reset()
        for key, parameter in cut.items():
            setattr(part, key, nn.Parameter(_own(getattr(part, key).detach(), parameter), parameter.requires_grad))


def _own(whole: torch.Tensor, parameter: DTensor) -> torch.Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _is_meta(part: nn.Module) -> bool:
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return any(tensor.is_meta for tensor in own)
