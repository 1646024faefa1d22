"""The trained module, rebuilt from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import safetensors.torch
import torch
from torch import nn

from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, GateError, IntegrityError


def rebuild(module_class: Callable[..., nn.Module], checkpoint: Checkpoint) -> nn.Module:
    """Return the module with the checkpoint's weights, in evaluation mode.

    The class comes from the caller; what the checkpoint's text says of it is for people.

    Raises:
        ConfigError: the class cannot be constructed with the arguments in the checkpoint, or was trained with some that
            the checkpoint could not keep.
        IntegrityError: the weights do not fit the class.
        GateError: a weight is NaN or infinite.
    """
    name = getattr(module_class, "__qualname__", str(module_class))
    module = _construct(module_class, name, checkpoint)
    tensors = checkpoint.weights(safetensors.torch.load)
    try:
        module.load_state_dict(tensors)
    except Exception as error:  # whatever a user's own hooks raise
        raise IntegrityError(
            f"The weights of {checkpoint} (a {checkpoint.manifest.module}) do not fit {name}: "
            f"{str(error).strip()[:500]} Give the class that was trained."
        ) from error
    _check_finite(tensors, checkpoint)
    return module.eval()


def _construct(module_class: Callable[..., nn.Module], name: str, checkpoint: Checkpoint) -> nn.Module:
    """Call the class with the arguments in the checkpoint. One that was not kept must not silently become a default."""
    manifest = checkpoint.manifest
    lost = manifest.not_rebuildable
    if lost and isinstance(module_class, type):
        raise ConfigError(
            f"{name} was trained with {', '.join(lost)}, of which a checkpoint, which holds plain data, keeps nothing. "
            f"Give it again: module=functools.partial({name}, {lost[0]}=...)."
        )
    try:
        return module_class(**manifest.hyper_parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be constructed with the arguments in {checkpoint} ({manifest.hyper_parameters}): {error}. "
            "Give a class, or a function, that takes them."
        ) from error


def _check_finite(tensors: dict[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise GateError(
                f"{checkpoint} has {bad} NaN or infinite values in {name!r} ({tensor.numel()} in all): the run "
                "diverged. Nothing was published. Export an earlier checkpoint."
            )
