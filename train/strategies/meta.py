"""Modules made on the meta device: their weights get memory and values only when their turn comes."""

from __future__ import annotations

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.train.seed import current_seed, isolate_rng


def materialized(unit: nn.Module, device: torch.device, name: str) -> None:
    """Give the parts of a unit that are on the meta device memory, and values by their `reset_parameters`.

    All workers draw the same, whatever they have drawn before: the values depend on the seed and the name.

    Raises:
        ConfigError: a part has weights and no way to give them values.
    """
    empty = [(path, part) for path, part in unit.named_modules() if _is_meta(part)]
    if not empty:
        return
    with isolate_rng((current_seed() or 0) + sum(name.encode())):
        for path, part in empty:
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is None:
                where = ".".join(filter(None, (name, path))) or type(part).__name__
                raise ConfigError(
                    f"{where} ({type(part).__name__}) was made on the meta device, and has no reset_parameters that "
                    "would give its weights values: define it, or make the module on the CPU."
                )
            part.to_empty(device=device, recurse=False)
            with torch.no_grad():
                reset()


def _is_meta(part: nn.Module) -> bool:
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return any(tensor.is_meta for tensor in own)
