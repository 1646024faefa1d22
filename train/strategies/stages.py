"""A module's layers in a row, and how they are divided among the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shipline.errors import ConfigError


def layers_of(module: Any) -> list[nn.Module]:
    """Return the layers that the module's `configure_pipeline` lists; ConfigError where it lists none."""
    kind = type(module).__name__
    found = module.configure_pipeline() if hasattr(module, "configure_pipeline") else None
    layers = list(found) if isinstance(found, nn.Sequential | Sequence) else []
    if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        raise ConfigError(
            f"A pipeline needs to know the layers of {kind} in their order: let its configure_pipeline() return them, "
            "such as [self.embed, *self.blocks, self.head]; what one returns, the next one takes."
        )
    return layers


def check_layers(module: nn.Module, layers: list[nn.Module], stages: int) -> None:
    """Refuse layers that are not the whole module, that share weights, or that are too few.

    Raises:
        ConfigError: says which.
    """
    kind = type(module).__name__
    if len(layers) < stages:
        raise ConfigError(
            f"{kind} has {len(layers)} layers in configure_pipeline, which {stages} stages cannot share: take fewer "
            "workers or stages, or list finer layers."
        )
    seen: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            if seen.setdefault(id(parameter), number) != number:
                raise ConfigError(
                    f"Layers {seen[id(parameter)]} and {number} of {kind}'s configure_pipeline share weights, which "
                    "two workers cannot: let each have its own, or make one layer of both."
                )
    left = [name for name, tensor in module.named_parameters() if id(tensor) not in seen]
    if left:
        raise ConfigError(
            f"{kind} has weights in none of the layers of its configure_pipeline: {', '.join(left[:5])}. Put them into "
            "a layer."
        )
    _check_example(module, layers)


def _check_example(module: nn.Module, layers: list[nn.Module]) -> None:
    """Where the module has an example, see that the layers compute what `forward` does."""
    example = getattr(module, "example_input_array", None)
    if not isinstance(example, torch.Tensor) or any(tensor.is_meta for tensor in module.parameters()):
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    with torch.no_grad():
        want, found = module(example), nn.Sequential(*layers)(example)
    for part, training in modes:
        part.training = training
    if want.shape != found.shape or not torch.allclose(want, found, rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"The layers of {type(module).__name__}'s configure_pipeline, one after another, do not compute what "
            "forward does for example_input_array: list those that forward runs, in its order."
        )


def divided(layers: list[nn.Module], stages: int) -> list[list[nn.Module]]:
    """Return the layers in so many parts of about equally many weights, each with one layer at least."""
    sizes = [1 + sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    parts: list[list[nn.Module]] = [[]]
    left, taken = sum(sizes), 0
    for number, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        remaining, need = stages - len(parts) + 1, stages - len(parts)
        full = taken + size / 2 > left / remaining or len(layers) - number <= need
        if parts[-1] and full and need:
            left, taken = left - taken, 0
            parts.append([])
        parts[-1].append(layer)
        taken += size
    return parts
