"""A real LightningModule that learns digits, in our Trainer and in Lightning's."""

from __future__ import annotations

from typing import Any

import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F


class LightningDigits(pytorch_lightning.LightningModule):
    """64 pixels -> the logits of ten digits, by a backbone and a head; batch norm and a schedule where asked for."""

    def __init__(self, norm: bool = False, schedule: bool = False, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.schedule = schedule
        self.backbone = nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24) if norm else nn.Identity(), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.backbone(image))
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.lr, momentum=0.9)
        if not self.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]
