"""Rows that are drawn at random, and a module with all that a run must take up again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from training import Mlp, rows


class Augmented(Dataset[Any]):
    """Rows with noise from each of the three generators."""

    def __init__(self, count: int) -> None:
        self.rows = rows(0, count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        image, digit = self.rows[index]
        return image + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(1), digit


class Everything(Mlp):
    """Dropout, batch norm, momentum, a scheduler by steps and one by epochs: all that a run has in its state."""

    def __init__(self) -> None:
        super().__init__(hidden=16, dropout=0.4)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(image))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("rate", self.trainer.optimizer.param_groups[0]["lr"])
        self.log("train_epoch", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0)
        return [optimizer], [{"scheduler": cosine, "interval": "step"}, {"scheduler": plateau, "monitor": "val_loss"}]
