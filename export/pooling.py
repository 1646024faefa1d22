"""What makes one vector of a text's token vectors; modules, so that it is in the graph.

The names and sums are those of sentence-transformers.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from shipline.errors import ConfigError, unknown_name

Mode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Pooling(nn.Module):
    """Token vectors [batch, tokens, width] and their mask [batch, tokens] -> [batch, width], or wider with more modes.

    Args:
        modes: the "mean" over the tokens that the mask keeps, the same but for the square root of their number
            ("mean_sqrt_len_tokens") or weighted by their places ("weightedmean"), the first of them ("cls"), the last
            ("lasttoken"), or their "max"; of several modes one vector behind the other.
        padding_side: where the mask is 0, if anywhere.

    Raises:
        ConfigError: there is no mode, or an unknown one.
    """

    def __init__(self, *modes: Mode, padding_side: Literal["left", "right"] = "right") -> None:
        super().__init__()
        if not modes:
            raise ConfigError(f"Pooling needs a mode; choose one of {', '.join(MODES)}, or several.")
        for mode in modes:
            if mode not in MODES:
                raise unknown_name("pooling mode", mode, MODES)
        self.modes, self.padding_side = modes, padding_side

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = [self._pooled(mode, vectors, mask) for mode in self.modes]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _pooled(self, mode: Mode, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mode in ("cls", "lasttoken"):
            return self._at_an_end(vectors, mask, first=mode == "cls")
        kept = mask.unsqueeze(-1).to(vectors.dtype)
        if mode == "max":
            return (vectors * kept + (kept - 1) * torch.finfo(vectors.dtype).max).amax(dim=1)
        weights = kept * kept.cumsum(dim=1) if mode == "weightedmean" else kept
        count = weights.sum(dim=1).clamp(min=1e-9)
        return (vectors * weights).sum(dim=1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)

    def _at_an_end(self, vectors: torch.Tensor, mask: torch.Tensor, *, first: bool) -> torch.Tensor:
        """The first token's vector, or the last one's; on the side where there is padding it is behind that."""
        if first == (self.padding_side == "right"):
            return vectors[:, 0 if first else -1]
        padded = (mask == 0).sum(dim=1).clamp(max=vectors.shape[1] - 1)
        place = padded if first else vectors.shape[1] - 1 - padded
        return vectors.gather(1, place.view(-1, 1, 1).expand(-1, 1, vectors.shape[2])).squeeze(1)


class Normalize(nn.Module):
    """Vectors [batch, width] -> the same of length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, dim=-1)
