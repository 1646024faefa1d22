"""Networks that pruning has to find its way through; each takes a scan of 64 pixels, and trains as `Tiny` does."""

from __future__ import annotations

from typing import Any

import torch
from small_modules import Tiny
from torch import nn
from transformers import BertConfig, BertModel


class Residual(Tiny):
    """Convolutions with a residual, a depthwise and a grouped one, batch and group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32),
            nn.Conv2d(32, 64, 1), nn.ReLU6(), nn.Conv2d(64, 32, 1),
        )  # fmt: skip
        self.grouped = nn.Sequential(
            nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=4), nn.GroupNorm(4, 32), nn.ReLU()
        )
        self.net = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Hardswish(), nn.Flatten(), nn.Linear(32 * 16, 10))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x.unflatten(1, (1, 8, 8)))
        return self.net(self.grouped(x + self.block(x)))


class Gated(Tiny):
    """Convolutions whose channels are weighted by what they hold together, paths that are joined, and layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 32, 5, padding=2)
        self.gate = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 48), nn.Sigmoid())
        self.mix = nn.Conv2d(48, 32, 1)
        self.norm = nn.LayerNorm(32)
        self.net = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        x = x.unflatten(1, (1, 8, 8))
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        x = self.mix(x * self.gate(x.mean((2, 3)))[:, :, None, None])
        return self.net(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))


class Attends(Tiny):
    """Encoder layers of torch over the rows of the scan."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 32)
        self.places = nn.Parameter(torch.zeros(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.net = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.encoder(self.rows(x.unflatten(1, (8, 8))) + self.places).mean(1))


class Bert(Tiny):
    """A small BERT of transformers over every fourth pixel, whose 17 shades of grey are its words."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=17, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=16,
        )  # fmt: skip
        self.bert = BertModel(config)
        self.net = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.bert(input_ids=(x[:, ::4] * 16).long()).pooler_output)
