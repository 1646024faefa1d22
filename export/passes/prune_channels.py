"""Channels that are taken out of a network, which makes it smaller and faster on any processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.export.latency import batch_of
from shipline.export.passes.base import Material, ModulePass, finetuning, unprunable
from shipline.plugins import load_target

_NORMS = {"l1": 1, "l2": 2}
_PARTS = ("narrowing:narrowed", "channels:Wanted")  # which need the extra


@dataclass(frozen=True, kw_only=True)
class PruneChannels(ModulePass):
    """Takes out whole channels, through all layers that they pass, and trains what is left.

    Convolutions (grouped and depthwise ones, too), linear layers and norms become narrower. Channels stay that
    reach an output, attention, an embedding or a weight that layers share: of a transformer, the feed-forward layers
    become narrower, and with `heads` attention has fewer heads. Needs the extra `prune`.

    Args:
        ratio: share of the channels to take out, of those that can go.
        finetune_epochs: passes over the training data afterwards; 0: none.
        importance: the norm of its weights by which a channel stays: "l2" or "l1"; all layers are ranked together.
        round_to: layers keep multiples of so many channels, which runtimes compute with best.
        heads: take the same share of the heads out of attention, where `scaled_dot_product_attention` computes it and
            the code tells heads by shapes, as transformers' does; `nn.MultiheadAttention` keeps its own.
        keep: names of layers whose channels stay, such as "features.0".
    """

    ratio: float = 0.5
    finetune_epochs: int = 10
    importance: Literal["l2", "l1"] = "l2"
    round_to: int = 8
    heads: bool = False
    keep: tuple[str, ...] = ()

    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 < self.ratio < 1:
            raise ConfigError(f"PruneChannels has ratio={self.ratio!r}; set a share between 0 and 1.")
        for name, least in (("finetune_epochs", 0), ("round_to", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"PruneChannels has {name}={value!r}; set a whole number from {least} on.")
        if self.importance not in _NORMS:
            raise ConfigError(f"PruneChannels has importance={self.importance!r}; choose one of {', '.join(_NORMS)}.")

    @property
    def label(self) -> str:
        """What a module is called that went through it."""
        return f"pruned-{100 * self.ratio:g}%"

    def apply(self, module: nn.Module, material: Material) -> nn.Module:
        """Return the narrower module; GateError where no channel can go."""
        train = finetuning(material, self.finetune_epochs, type(self).__name__)
        narrowed, wanted = (load_target(f"shipline.export.passes.{name}") for name in _PARTS)
        rows = batch_of(material.calibration(), 2)
        example = {spec.name: torch.from_numpy(rows[spec.name]) for spec in material.signature.inputs}
        try:
            what = wanted(self.ratio, _NORMS[self.importance], self.round_to, self.heads)
            narrow: nn.Module = narrowed(module, example, what, self.keep)
        except ConfigError:
            raise
        except Exception as error:  # whatever a user's module does when it is followed
            raise unprunable(module, error) from error
        train(narrow)
        return narrow.eval()
