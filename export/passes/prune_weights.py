"""Weights that are set to zero, one by one or two of four."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from shipline.errors import ConfigError, GateError
from shipline.export.passes.base import Material, ModulePass, finetuning, unprunable

_PATTERNS = ("unstructured", "2:4")

#: A layer, and the name of its weight.
Place = tuple[nn.Module, str]


@dataclass(frozen=True, kw_only=True)
class PruneWeights(ModulePass):
    """Sets the smallest weights of linear layers and convolutions to zero, and trains the others.

    The network keeps its form: no processor computes faster for it, and the file is as large as before, until it is
    compressed. "2:4" is what GPUs with sparse tensor cores compute faster with, once their runtime is told to.

    Args:
        amount: share of the weights to set to zero.
        pattern: "unstructured": the smallest of all layers together; "2:4": of each four along the input of a layer,
            the two smallest; layers whose input is no multiple of four stay.
        finetune_epochs: passes over the training data afterwards, in which zeros stay zero; 0: none.
    """

    amount: float = 0.5
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    finetune_epochs: int = 10

    shrinks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int | float) or not 0 < self.amount < 1:
            raise ConfigError(f"PruneWeights has amount={self.amount!r}; set a share between 0 and 1.")
        if self.pattern not in _PATTERNS:
            raise ConfigError(f"PruneWeights has pattern={self.pattern!r}; choose one of {', '.join(_PATTERNS)}.")
        if self.pattern == "2:4" and self.amount != 0.5:
            raise ConfigError(f"PruneWeights has pattern='2:4' and amount={self.amount!r}; two of four is 0.5.")
        epochs = self.finetune_epochs
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"PruneWeights has finetune_epochs={epochs!r}; set a whole number from 0 on.")

    @property
    def label(self) -> str:
        """What a module is called that went through it."""
        return "sparse-2:4" if self.pattern == "2:4" else f"sparse-{100 * self.amount:g}%"

    def apply(self, module: nn.Module, material: Material) -> nn.Module:
        """Return the module with zeros; GateError where it has no such weights."""
        train = finetuning(material, self.finetune_epochs, type(self).__name__)
        try:
            sparse = copy.deepcopy(module)
            masks = self._masks(sparse)
            for (layer, name), mask in masks:
                parametrize.register_parametrization(layer, name, _Masked(mask))
        except Exception as error:  # whatever a user's module does when it is copied
            raise unprunable(module, error) from error
        train(sparse)
        for (layer, name), _ in masks:
            parametrize.remove_parametrizations(layer, name)
        return sparse.eval()

    def _masks(self, module: nn.Module) -> list[tuple[Place, torch.Tensor]]:
        """Where weights become zeros, each place with the mask that has them."""
        places = list(_places(module))
        if self.pattern == "2:4":
            places = [place for place in places if _weight(place).shape[_input_axis(place[0])] % 4 == 0]
        if not places:
            raise GateError("it has no linear layer or convolution that can have such zeros.")
        if self.pattern == "2:4":
            return [(place, _two_of_four(_weight(place), _input_axis(place[0]))) for place in places]
        weights = [_weight(place) for place in places]
        every = torch.cat([weight.flatten() for weight in weights])
        method: Any = prune.L1Unstructured(self.amount)
        parts = torch.split(method.compute_mask(every, torch.ones_like(every)), [weight.numel() for weight in weights])
        return [(place, part.view_as(_weight(place))) for place, part in zip(places, parts, strict=True)]


def _places(module: nn.Module) -> Iterator[Place]:
    """The weights of linear layers and convolutions; those that attention has for its inputs, too."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd):  # noqa: SLF001 -- all convolutions, by no other name
            yield part, "weight"
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            yield part, "in_proj_weight"


def _weight(place: Place) -> torch.Tensor:
    layer, name = place
    return layer.get_parameter(name).detach()


def _input_axis(layer: nn.Module) -> int:
    return 0 if getattr(layer, "transposed", False) else 1


class _Masked(nn.Module):
    """Zeros in a weight wherever it is read: attention reads those of its layers without calling them."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def _two_of_four(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Ones at the two largest of each four along the axis."""
    last = weight.abs().movedim(axis, -1)
    fours = last.reshape(*last.shape[:-1], -1, 4)
    largest = fours.argsort(dim=-1, stable=True, descending=True)[..., :2]
    return torch.zeros_like(fours).scatter_(-1, largest, 1).flatten(-2).movedim(-1, axis)
