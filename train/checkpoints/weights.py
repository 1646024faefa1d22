"""A module's weights: which tensors they are, and what shares memory with what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import nn

from shipline.checkpoint import WEIGHTS_INDEX, Checkpoint
from shipline.errors import IntegrityError, TrainingError
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.tree import Tensors, storable
from shipline.train.strategies.tensors import is_spread, spread_like


def split_tied(state_dict: Mapping[str, Any]) -> tuple[Tensors, dict[str, str]]:
    """Return a module's weights, each shared tensor once, and which names share which.

    Raises:
        TrainingError: something in the state dict is no tensor.
    """
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    tensors: Tensors = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise TrainingError(f"The module's extra state {name!r} is no tensor: keep it in a buffer.")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        tensors[name] = storable(tensor, name)
    return tensors, tied


def dump_weights(state_dict: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return a module's weights as safetensors, each shared tensor once, and which names share which."""
    tensors, tied = split_tied(state_dict)
    return bytes(Image().fill(tensors)), tied


def load_weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    on_load: Callable[[dict[str, Any]], Any],
    own: dict[str, Any],
    strict: bool = True,
    load: Callable[..., Any] | None = None,
) -> None:
    """Load the checkpoint's weights into the module, after `on_load` has seen them and what the module `own`s there.

    Args:
        module: to be loaded.
        checkpoint: that holds them.
        on_load: called with the content before.
        own: what else is in the content.
        strict: refuse names that are missing or unexpected.
        load: called with module, weights and `strict`, in place of the module's `load_state_dict`.

    Raises:
        IntegrityError: the file is damaged, or names or shapes differ from the module's; the message lists some.
    """
    manifest = checkpoint.manifest
    content = {
        "state_dict": _weights(module, checkpoint), "epoch": manifest.epoch,
        "global_step": manifest.global_step, "hyper_parameters": dict(manifest.hyper_parameters), **own,
    }  # fmt: skip
    on_load(content)
    try:
        have = module.state_dict()
        weights = {
            name: spread_like(tensor, have[name]) if name in have and isinstance(tensor, torch.Tensor) else tensor
            for name, tensor in content["state_dict"].items()
        }
        if load is None:
            module.load_state_dict(weights, strict=strict)
        else:
            load(module, weights, strict=strict)
    except Exception as error:  # whatever a user's own hooks raise
        raise IntegrityError(
            f"The weights of {checkpoint} do not fit {type(module).__name__}: {str(error).strip()[:500]} "
            "Give the class and the constructor arguments that it was trained with."
        ) from error


def load_whole(module: nn.Module, weights: Mapping[str, Any], strict: bool = True) -> None:
    """Load weights into a module that no strategy has divided.

    One that was made on the meta device takes the tensors themselves: to copy into it would do nothing.
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    if not named or not all(parameter.is_meta for parameter in named.values()):
        module.load_state_dict(weights, strict=strict)
        return
    shared: dict[int, nn.Parameter] = {}  # names of one parameter go on being that

    def taken(name: str, tensor: Any) -> Any:
        if name not in named or not isinstance(tensor, torch.Tensor):
            return tensor
        return shared.setdefault(id(named[name]), nn.Parameter(tensor, requires_grad=False))

    module.load_state_dict({name: taken(name, tensor) for name, tensor in weights.items()}, strict=strict, assign=True)


def _weights(module: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's weights; where the module and they are both in parts, only this worker's."""
    if not checkpoint.is_sharded:
        return checkpoint.weights(safetensors.torch.load)
    own = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    if not any(is_spread(tensor) or tensor.is_meta for tensor in own.values()):
        return checkpoint.weights(safetensors.torch.load)
    from shipline.train.checkpoints.shards import like, read_shards

    index = checkpoint.index(WEIGHTS_INDEX)
    sources = {name: checkpoint.manifest.tied_weights.get(name, name) for name in own}
    found = {
        source: like(index, source, own[name])
        for name, source in sources.items()
        if source in index.root and not own[name].is_meta
    }
    read_shards(checkpoint, index, found)
    # What another worker holds is empty here, and stays so.
    return {name: found.get(source, own[name]) for name, source in sources.items() if source in index.root}
