"""What makes one vector of a text's token vectors; modules, so that it is in the graph."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Mode = Literal["mean", "cls", "max"]


class Pooling(nn.Module):
    """Token vectors [batch, tokens, width] and their mask [batch, tokens] -> [batch, width].

    Args:
        mode: the "mean" over the tokens that the mask keeps, the first token's ("cls"), or the "max" over those kept.
    """

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.mode == "cls":
            return vectors[:, 0]
        kept = mask.unsqueeze(-1).to(vectors.dtype)
        if self.mode == "max":
            return (vectors * kept + (kept - 1) * torch.finfo(vectors.dtype).max).amax(dim=1)
        return (vectors * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)


class Normalize(nn.Module):
    """Vectors [batch, width] -> the same of length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, dim=-1)
