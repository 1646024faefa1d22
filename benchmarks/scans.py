"""The digits as pictures of 32x32 pixels, and a network for them: 7.4 million multiplications a row."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl


class Scans(sl.Module):
    """Three convolutions, and a layer of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_block(1, 32), *_block(32, 64), *_block(64, 64), nn.Flatten())
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(rows, 1, 32, 32) -> (rows, 10)."""
        logits: torch.Tensor = self.head(self.features(image))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The share of right digits."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class ScansData(sl.DataModule):
    """A fifth validates, the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        pixels, digits = load_digits(return_X_y=True)
        small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
        images, targets = F.interpolate(small, size=(32, 32), mode="bilinear")[order], torch.tensor(digits)[order]
        self.val = TensorDataset(images[:360], targets[:360])
        self.train = TensorDataset(images[360:], targets[360:])

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, 64 a batch."""
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """128 a batch."""
        return DataLoader(self.val, batch_size=128)


def _block(inward: int, outward: int) -> list[nn.Module]:
    return [nn.Conv2d(inward, outward, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
