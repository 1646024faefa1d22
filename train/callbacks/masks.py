"""Masks over a layer's parameters, and what chooses them: `torch.nn.utils.prune`.

It keeps `weight_orig` and `weight_mask` in a layer, and their product as its `weight`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from shipline.errors import ConfigError, nearest

#: A layer, and the name of its parameter.
Place = tuple[nn.Module, str]

ORIGINAL, MASK = "_orig", "_mask"
_FUNCTIONS: dict[str, tuple[Callable[..., Any], type[prune.BasePruningMethod]]] = {
    "l1_unstructured": (prune.l1_unstructured, prune.L1Unstructured),
    "ln_structured": (prune.ln_structured, prune.LnStructured),
    "random_structured": (prune.random_structured, prune.RandomStructured),
    "random_unstructured": (prune.random_unstructured, prune.RandomUnstructured),
}


def pruning_function(given: Any, together: bool, dim: int | None, norm: int | None) -> Any:
    """Return what prunes: a method of torch's where all layers are ranked `together`, else a function for one.

    Raises:
        ConfigError: it is neither a name nor a method, or cannot be used so.
    """
    if isinstance(given, str):
        return _by_name(given.lower(), together, dim, norm)
    if not inspect.isclass(given) or not issubclass(given, prune.BasePruningMethod):
        raise ConfigError(
            f"ModelPruning has pruning_fn={given!r}; choose one of {', '.join(_FUNCTIONS)}, or a class (not an object) "
            "derived from torch.nn.utils.prune.BasePruningMethod."
        )
    if not together:
        raise ConfigError(
            f"ModelPruning has {given.__name__}, a class, as pruning_fn: it works with use_global_unstructured=True."
        )
    return _for_single_weights(given)


def _by_name(name: str, together: bool, dim: int | None, norm: int | None) -> Any:
    if name not in _FUNCTIONS:
        raise ConfigError(
            f"ModelPruning has pruning_fn={name!r}.{nearest(name, _FUNCTIONS)} Known: {', '.join(_FUNCTIONS)}."
        )
    function, method = _FUNCTIONS[name]
    if together:
        return _for_single_weights(method)
    if not name.endswith("_structured"):
        return function
    if dim is None:
        raise ConfigError(f"ModelPruning has {name}, which removes slices: set pruning_dim, 0 for a layer's outputs.")
    if name == "random_structured":
        return partial(function, dim=dim)
    if norm is None:
        raise ConfigError("ModelPruning has ln_structured, which ranks by a norm: set pruning_norm, such as 2.")
    return partial(function, dim=dim, n=norm)


def _for_single_weights(method: type[prune.BasePruningMethod]) -> type[prune.BasePruningMethod]:
    if getattr(method, "PRUNING_TYPE", None) != "unstructured":
        raise ConfigError(
            f"ModelPruning has {method.__name__}, which removes slices, and use_global_unstructured=True, which ranks "
            "single weights: set it to False."
        )
    return method


def parameter_at(layer: nn.Module, name: str) -> Any:
    """Return a layer's parameter, also behind a mask; None where it has none."""
    return getattr(layer, name + ORIGINAL, getattr(layer, name, None))


def mask_at(layer: nn.Module, name: str) -> torch.Tensor | None:
    """Return the mask over a layer's parameter."""
    return getattr(layer, name + MASK, None)


def masked_names(layer: nn.Module) -> list[str]:
    """Return the names of a layer's parameters that have masks."""
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001 -- torch keeps no other record
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]  # noqa: SLF001


def put_mask(layer: nn.Module, name: str, mask: torch.Tensor, original: torch.Tensor) -> None:
    """Put a mask over a layer's parameter, which becomes `original`."""
    parameter = parameter_at(layer, name)
    with torch.no_grad():
        parameter.copy_(original)
    prune.custom_from_mask(layer, name, mask.to(parameter.device))  # type: ignore[no-untyped-call]


def remove_masks(module: nn.Module) -> None:
    """Make plain parameters, with zeros, of all that have masks."""
    for part in module.modules():
        for name in masked_names(part):
            prune.remove(part, name)  # type: ignore[no-untyped-call]


def redrawn(layer: nn.Module) -> nn.Module | None:
    """Return a copy of a layer with plain parameters, drawn anew as when it was made; None where it cannot do that."""
    if not hasattr(layer, "reset_parameters"):
        return None
    plain: Any = copy.copy(layer)
    plain._parameters = {  # noqa: SLF001
        name.removesuffix(ORIGINAL): nn.Parameter(parameter.detach().clone())
        for name, parameter in layer.named_parameters(recurse=False)
    }
    for name in masked_names(layer):
        del plain.__dict__[name]
    plain.reset_parameters()
    return plain  # type: ignore[no-any-return]
