"""A small transformer over the digits' rows of pixels, which can be sharded, cut and pipelined."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from training import rows

import shipline as sl

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Heads side by side: cut among workers, each has some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        parts = [
            part(x).view(batch, length, -1, WIDTH // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, length, -1)
        return self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a multi-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """Rows of eight pixels as tokens, with a place each."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, WIDTH)
        self.place = nn.Parameter(torch.zeros(8, WIDTH))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.project(image.view(-1, 8, 8)) + self.place  # type: ignore[no-any-return]

    def reset_parameters(self) -> None:
        nn.init.normal_(self.place, std=0.02)


class Head(nn.Module):
    """The mean over places, and a score for each digit."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(x.mean(1))  # type: ignore[no-any-return]


class Transformer(sl.Module):
    """Tells digits."""

    def __init__(self, depth: int = 4, optimizer: str = "adam") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed, self.head = Embedding(), Head()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.optimizer = optimizer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]

    def configure_pipeline(self) -> list[nn.Module]:
        return [self.embed, *self.blocks, self.head]

    def parallelize_plan(self) -> dict[str, Any]:
        first = dict.fromkeys((f"blocks.*.attention.{name}" for name in ("query", "key", "value")), "colwise")
        return first | {"blocks.*.attention.out": "rowwise", "blocks.*.up": "colwise", "blocks.*.down": "rowwise"}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        image, digit = batch
        loss = F.cross_entropy(self(image), digit)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, digit = batch
        scores = self(image)
        self.log("val_loss", F.cross_entropy(scores, digit), batch_size=len(digit))
        self.log("right", (scores.argmax(1) == digit).sum().float(), reduce_fx="sum")

    def configure_optimizers(self) -> Any:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def transformer(**options: Any) -> Transformer:
    """The same one each time."""
    torch.manual_seed(0)
    return Transformer(**options)


def digits(start: int, stop: int) -> Any:
    """Some of the digits."""
    return rows(start, stop)
