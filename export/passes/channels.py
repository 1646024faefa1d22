"""Channels that can be taken out of a network: through all layers that they pass, as torch-pruning follows them."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from shipline.errors import ConfigError, GateError, nearest
from shipline.export.passes.base import quiet

with quiet():
    import torch_pruning as library
    from torch_pruning.ops import OPTYPE

Example = dict[str, torch.Tensor]

# A layer keeps at least this part of what all keep on average, lest one be closed.
LEAST = 0.5
# What the answers may differ by, in parts of the largest, where channels are gone rather than zero.
TOLERANCE = 1e-3

#: Layers and forms that channels are followed through; where they meet anything else, they stay.
_LAYERS = (OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.LINEAR, OPTYPE.BN, OPTYPE.LN, OPTYPE.GN, OPTYPE.IN, OPTYPE.PRELU)
_FORMS = (OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.RESHAPE, OPTYPE.SLICE)
#: Operations, by what autograd calls them, that leave channels where they are and do not mix them; those of a Linear.
_PLAIN = re.compile(
    r"(Add|Sub|Mul|Div|Neg|Abs|Pow|Sqrt|Rsqrt|Exp|Clamp\w*|Relu|LeakyRelu|Elu|Celu|Gelu|Silu|Mish|Softplus|Sigmoid|Tanh|"
    r"Hardtanh|Hardswish|Hardsigmoid|MaxPool\w*|AvgPool\w*|AdaptiveAvgPool\w*|AdaptiveMaxPool\w*|MkldnnAdaptiveAvgPool\w*|"
    r"Mean|Upsample\w*|ConstantPad\w*|ReflectionPad\w*|ReplicationPad\w*|Squeeze|Unsqueeze|Select|Transpose|Permute|Clone|"
    r"Alias|ToCopy|Addmm|Mm|T)Backward\d"
)


@dataclass(frozen=True)
class Channels:
    """Channels that one layer makes, and all that must go with them.

    Args:
        name: of that layer.
        layer: the layer itself.
        go: torch-pruning's function that takes channels out of it.
        scores: how much each matters; of channels that can only go together, one.
        times: how many go together: one in each group of a grouped layer.
    """

    name: str
    layer: nn.Module
    go: Any
    scores: torch.Tensor
    times: int

    def worst(self, count: int) -> list[int]:
        """The channels to take out, for `count` of the scores: those that matter least."""
        first = self.scores.argsort(stable=True)[:count]
        return sorted(int(i) + group * len(self.scores) for group in range(self.times) for i in first)


def remove_channels(
    module: nn.Module, example: Example, ratio: float, *, norm: int, round_to: int, keep: Collection[str]
) -> None:
    """Take the channels out that matter least, over the whole network, in place.

    Args:
        module: in evaluation mode, with gradients.
        example: two rows for its forward.
        ratio: share of the channels that can go.
        norm: of the weights that make and take a channel, which is what it matters.
        round_to: layers keep multiples of so many.
        keep: names of layers whose channels stay.

    Raises:
        ConfigError: `keep` names a layer that is not there.
        GateError: none can go, or what the module answers then is not what it would answer if they were zero.

    Source: https://arxiv.org/abs/2301.12900
    """
    graph = library.DependencyGraph().build_dependency(
        module, example_inputs=example, output_transform=_ends, verbose=False
    )
    found = list(_removable(graph, module, norm, _named(module, keep)))
    if not found:
        raise GateError(
            "all its channels reach outputs, attention or embeddings, or operations through which none can be followed."
        )
    counts = _counts(found, ratio, round_to)
    if not any(counts):
        raise GateError(f"its layers are too narrow for ratio={ratio:g} and round_to={round_to}; lower round_to.")
    for each, count in zip(found, counts, strict=True):
        if count:
            _remove(graph, each, each.worst(count), module, example)


def _ends(output: Any) -> list[torch.Tensor]:
    """A node of its own for each output, so that layers which make one can be told by what follows."""
    ends = [leaf * 1 for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not ends:
        raise GateError("none of its outputs has a gradient, by which channels are followed.")
    return ends


def _named(module: nn.Module, names: Collection[str]) -> set[int]:
    """The layers that are named, with those in them."""
    parts = dict(module.named_modules())
    for name in names:
        if name not in parts:
            raise ConfigError(f"PruneChannels has keep with {name!r}; there is no such layer.{nearest(name, parts)}")
    return {id(part) for name in names for part in parts[name].modules()}


def _bound(module: nn.Module) -> set[int]:
    """The layers whose weights are not theirs alone to change."""
    parts = list(module.modules())
    holders = Counter(id(weight) for part in parts for weight in part.parameters(recurse=False))
    shared = [part for part in parts if any(holders[id(weight)] > 1 for weight in part.parameters(recurse=False))]
    return {id(part) for part in (*shared, *filter(parametrize.is_parametrized, parts))}


def _removable(graph: Any, module: nn.Module, norm: int, kept: set[int]) -> Iterator[Channels]:
    names, bound = {part: name for name, part in module.named_modules()}, _bound(module)
    importance = library.importance.GroupMagnitudeImportance(p=norm, normalizer=None)
    for group in graph.get_all_groups():
        root, go = group[0].dep.target.module, group[0].dep.handler
        total, times = graph.get_out_channels(root), _times(group)
        if total % times or total == times or any(_stays(dep.target, bound) for dep, _ in group):
            continue
        if any(id(dep.target.module) in kept and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group):
            continue
        each = total // times
        together = graph.get_pruning_group(root, go, [each * i for i in range(times)])
        if len(together[0].idxs) != times:
            continue  # halves of one layer that meet again: more would go than was asked for
        scores = importance(group)[:total].view(times, each).mean(0)
        yield Channels(names[root], root, go, scores / scores.mean().clamp(min=1e-12), times)


def _stays(node: Any, bound: set[int]) -> bool:
    """Whether channels that come here cannot go, or be followed."""
    if node.type == OPTYPE.ELEMENTWISE:
        return not hasattr(node.grad_fn, "name") or _PLAIN.fullmatch(node.grad_fn.name()) is None
    return node.type not in (*_LAYERS, *_FORMS) or id(node.module) in bound


def _times(group: Any) -> int:
    """How many groups the layers have that these channels pass."""
    counts = [1]
    for dep, _ in group:
        if dep.target.type == OPTYPE.GN:
            counts.append(dep.target.module.num_groups)
        elif dep.target.type == OPTYPE.CONV:
            counts.append(dep.target.module.groups)
    return math.lcm(*counts)


def _counts(found: list[Channels], ratio: float, round_to: int) -> list[int]:
    """How many of each layer's scores go, where the channels of all are ranked together."""
    ranked = torch.cat([each.scores.repeat(each.times) for each in found]).argsort(stable=True)
    gone = torch.zeros(len(ranked))
    gone[ranked[: round(ratio * len(ranked))]] = 1
    counts = []
    for each, marks in zip(found, torch.split(gone, [len(each.scores) * each.times for each in found]), strict=True):
        total, step = len(each.scores), round_to // math.gcd(round_to, each.times)
        stays = max(total - float(marks.sum()) / each.times, total * (1 - ratio) * LEAST)
        counts.append(max(total - max(round(stays / step), 1) * step, 0))
    return counts


def _remove(graph: Any, channels: Channels, indices: list[int], module: nn.Module, example: Example) -> None:
    """Take them out, and see that the network answers as if they had been zero."""
    group = graph.get_pruning_group(channels.layer, channels.go, indices)
    with _zeroed(graph, group):
        before = _answers(module, example)
    group.prune()
    try:
        after = _answers(module, example)
    except Exception as error:
        raise GateError(_unfit(channels.name, f"it fails: {type(error).__name__}: {error}")) from error
    mixed = any(dep.target.type in (OPTYPE.LN, OPTYPE.GN) for dep, _ in group)  # their means are now of fewer
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            raise GateError(_unfit(channels.name, f"its answers have the shape {list(other.shape)}"))
        if not mixed and not torch.allclose(one, other, rtol=0, atol=TOLERANCE * max(float(one.abs().max()), 1e-6)):
            raise GateError(_unfit(channels.name, "it answers otherwise than if they were zero"))


def _unfit(name: str, what: str) -> str:
    return f"without channels of {name!r} {what}. Its code counts on them: set PruneChannels(keep=({name!r},))."


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
