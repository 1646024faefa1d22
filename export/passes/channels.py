"""Channels that can go, and how many of each layer's: torch-pruning follows them through all layers that they pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from shipline.errors import ConfigError, GateError, nearest
from shipline.export.passes.base import quiet

with quiet():
    import torch_pruning as library
    from torch_pruning.ops import OPTYPE as OPTYPE

Example = dict[str, torch.Tensor]

# A layer keeps at least this part of what all keep on average, lest one be closed.
LEAST = 0.5
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
class Wanted:
    """What to take out.

    Args:
        ratio: share of the channels that can go, over the whole network.
        norm: of the weights that make and take a channel, which is how much it matters.
        round_to: layers keep multiples of so many.
        heads: take heads of attention out, too.
    """

    ratio: float
    norm: int
    round_to: int
    heads: bool


@dataclass(frozen=True)
class Channels:
    """Channels that one layer makes, and all that must go with them.

    Args:
        name: of that layer.
        layer: the layer itself.
        go: torch-pruning's function that takes channels out of it.
        scores: how much each matters; of channels that can only go together, one.
        times: how many go together: one in each group of a grouped layer.
        head: how many go together: those of a head of attention.
    """

    name: str
    layer: nn.Module
    go: Any
    scores: torch.Tensor
    times: int = 1
    head: int = 1

    def worst(self, count: int) -> list[int]:
        """The channels to take out, for `count` of the scores: those that matter least."""
        places = torch.arange(len(self.scores) * self.times * self.head).view(self.times, -1, self.head)
        return sorted(places[:, self.scores.argsort(stable=True)[:count]].flatten().tolist())


def traced(module: nn.Module, example: Example) -> Any:
    """Return torch-pruning's graph of what depends on what; all weights must have gradients, by which it is found."""
    return library.DependencyGraph().build_dependency(
        module, example_inputs=example, output_transform=_ends, verbose=False
    )


def chosen(graph: Any, module: nn.Module, wanted: Wanted, keep: Collection[str]) -> list[tuple[Channels, list[int]]]:
    """Return what is to go, with the numbers of its channels: those that matter least.

    Args:
        graph: of the module, as `traced` gives it.
        module: the network.
        wanted: what to take out.
        keep: names of layers whose channels stay.

    Raises:
        ConfigError: `keep` names a layer that is not there.
        GateError: none can go.

    Source: https://arxiv.org/abs/2301.12900
    """
    found = list(_removable(graph, module, wanted, _named(module, keep)))
    if not found:
        raise GateError(
            "all its channels reach outputs, attention or embeddings, or operations through which none can be followed."
        )
    heads = [each for each in found if each.head > 1]  # ranked among themselves
    others = [each for each in found if each.head == 1]
    counts = _counts(others, wanted.ratio, wanted.round_to) + _counts(heads, wanted.ratio, 1)
    going = [(each, each.worst(count)) for each, count in zip([*others, *heads], counts, strict=True) if count]
    if not going:
        raise GateError(
            f"its layers are too narrow for ratio={wanted.ratio:g} and round_to={wanted.round_to}; lower round_to."
        )
    return going


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


def _removable(graph: Any, module: nn.Module, wanted: Wanted, kept: set[int]) -> Iterator[Channels]:
    names, bound = {part: name for name, part in module.named_modules()}, _bound(module)
    importance = library.importance.GroupMagnitudeImportance(p=wanted.norm, normalizer=None)
    for group in graph.get_all_groups():
        root, go = group[0].dep.target.module, group[0].dep.handler
        total, times = graph.get_out_channels(root), _times(group)
        attention = [dep.target for dep, _ in group if wanted.heads and _attends(dep.target)]
        if any(_stays(dep.target, bound) for dep, _ in group if dep.target not in attention):
            continue
        head = _head(attention, total) if attention else 1
        each = total // times // head
        if each * times * head != total or each == 1 or (head > 1 and times > 1):
            continue
        if any(id(dep.target.module) in kept and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group):
            continue
        together = graph.get_pruning_group(root, go, [each * i for i in range(times)])
        if len(together[0].idxs) != times:
            continue  # halves of one layer that meet again: more would go than was asked for
        scores = importance(group)[:total].view(times, each, head).mean((0, 2))
        yield Channels(names[root], root, go, scores / scores.mean().clamp(min=1e-12), times, head)


def _stays(node: Any, bound: set[int]) -> bool:
    """Whether channels that come here cannot go, or be followed."""
    if node.type == OPTYPE.ELEMENTWISE:
        return not hasattr(node.grad_fn, "name") or _PLAIN.fullmatch(node.grad_fn.name()) is None
    return node.type not in (*_LAYERS, *_FORMS) or id(node.module) in bound


def _attends(node: Any) -> bool:
    """Whether it is attention as torch computes it, which knows where heads are."""
    return node.type == OPTYPE.ELEMENTWISE and hasattr(node.grad_fn, "_saved_query")


def _head(attention: list[Any], total: int) -> int:
    """How many channels a head has; `total` where that is not the same for all that meet here: then none can go."""
    shapes = {
        (getattr(node.grad_fn, name).shape[1], getattr(node.grad_fn, name).shape[-1])
        for node in attention
        for name in ("_saved_query", "_saved_key", "_saved_value")
    }
    [(count, head), *others] = shapes
    return head if not others and count * head == total else total


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
    if not found:
        return []
    ranked = torch.cat([each.scores.repeat(each.times) for each in found]).argsort(stable=True)
    gone = torch.zeros(len(ranked))
    gone[ranked[: round(ratio * len(ranked))]] = 1
    counts = []
    for each, marks in zip(found, torch.split(gone, [len(each.scores) * each.times for each in found]), strict=True):
        total, step = len(each.scores), round_to // math.gcd(round_to, each.times)
        stays = max(total - float(marks.sum()) / each.times, total * (1 - ratio) * LEAST)
        counts.append(max(total - max(round(stays / step), 1) * step, 0))
    return counts
