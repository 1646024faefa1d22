"""Networks made narrower: channels are taken out, and what is left must answer as if they had been zero."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shipline.errors import GateError
from shipline.export.passes.base import quiet
from shipline.export.passes.channels import OPTYPE, Channels, Example, Wanted, chosen, traced

logger = logging.getLogger(__name__)

# What the answers may differ by, in parts of the largest, where channels are gone rather than zero.
TOLERANCE = 1e-3


def narrowed(module: nn.Module, example: Example, wanted: Wanted, keep: Collection[str]) -> nn.Module:
    """Return a copy of the module without the channels that matter least.

    Where it does not answer without some channels as if they were zero, since its code counts on them, they stay.

    Args:
        module: in evaluation mode; it stays as it is.
        example: two rows for its forward.
        wanted: what to take out.
        keep: names of layers whose channels stay.

    Raises:
        ConfigError: `keep` names a layer that is not there.
        GateError: no channel can go.
    """
    stay, why = [*keep], ""
    while True:
        narrow = copy.deepcopy(module).eval()
        try:
            with quiet(), torch.enable_grad(), _all_trainable(narrow):
                _narrow(narrow, example, wanted, stay)
        except _Unfit as unfit:
            stay.append(unfit.layer)
            why += f" {unfit}"
        except GateError as error:
            raise GateError(f"{error}{why}") from error
        else:
            if why:
                logger.info("Some channels of %s stay.%s", type(module).__name__, why)
            return narrow


class _Unfit(Exception):  # noqa: N818 -- a finding
    """Channels of a layer cannot go."""

    def __init__(self, layer: str, what: str) -> None:
        super().__init__(f"Without channels of {layer!r} {what}.")
        self.layer = layer


def _narrow(module: nn.Module, example: Example, wanted: Wanted, keep: Collection[str]) -> None:
    graph = traced(module, example)
    for channels, indices in chosen(graph, module, wanted, keep):
        _remove(graph, channels, indices, module, example)


@contextlib.contextmanager
def _all_trainable(module: nn.Module) -> Iterator[None]:
    """Gradients are what channels are followed by."""
    frozen = [name for name, weight in module.named_parameters() if not weight.requires_grad]
    for name in frozen:
        weight = module.get_parameter(name)
        weight.requires_grad_(weight.is_floating_point())
    yield
    for name in frozen:
        module.get_parameter(name).requires_grad = False


def _remove(graph: Any, channels: Channels, indices: list[int], module: nn.Module, example: Example) -> None:
    """Take them out, and see that the network answers as if they had been zero."""
    try:
        group = graph.get_pruning_group(channels.layer, channels.go, indices)
        with _zeroed(graph, group):
            before = _answers(module, example)
        group.prune()
        after = _answers(module, example)
    except Exception as error:  # whatever a user's module does with fewer channels
        raise _Unfit(channels.name, f"it fails: {type(error).__name__}: {error}") from error
    mixed = any(dep.target.type in (OPTYPE.LN, OPTYPE.GN) for dep, _ in group)  # their means are now of fewer
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            raise _Unfit(channels.name, f"its answers have the shape {list(other.shape)}")
        if not mixed and not torch.allclose(one, other, rtol=0, atol=TOLERANCE * max(float(one.abs().max()), 1e-6)):
            raise _Unfit(channels.name, "it answers otherwise than if they were zero")


def _answers(module: nn.Module, example: Example) -> list[torch.Tensor]:
    copies = {name: tensor.clone() for name, tensor in example.items()}  # forward may write into its inputs
    leaves = pytree.tree_leaves(module(**copies))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


@contextlib.contextmanager
def _zeroed(graph: Any, group: Any) -> Iterator[None]:
    """Let the layers that take these channels find zeros in their place."""
    hooks = []
    for dep, indices in group:
        layer, kind = dep.target.module, dep.target.type
        if kind in (OPTYPE.CONV, OPTYPE.LINEAR) and not graph.is_out_channel_pruning_fn(dep.handler):
            axis = -1 if kind == OPTYPE.LINEAR else -1 - len(layer.kernel_size)
            hooks.append(layer.register_forward_pre_hook(partial(_zero, axis=axis, indices=torch.tensor(indices))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _zero(layer: nn.Module, inputs: tuple[Any, ...], *, axis: int, indices: torch.Tensor) -> tuple[Any, ...]:
    return inputs[0].index_fill(axis, indices, 0), *inputs[1:]
