"""A user's code for PyTorch Lightning, and its training there: what our export takes the checkpoints of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class LitDigits(pytorch_lightning.LightningModule):
    """A scan of 64 pixels -> the logits of ten digits."""

    def __init__(self, width: int = 8, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width), activation or nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class OneArgument(LitDigits):
    """Keeps a dict as its only argument, and something of its own in the checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        pytorch_lightning.LightningModule.__init__(self)
        self.save_hyperparameters(config)
        self.net = nn.Sequential(nn.Linear(64, config["width"]), nn.ReLU(), nn.Linear(config["width"], 10))
        self.shift = 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["shift"] = 0.5

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.shift = checkpoint["shift"]


class Silent(LitDigits):
    """Keeps no arguments."""

    def __init__(self, width: int = 8) -> None:
        pytorch_lightning.LightningModule.__init__(self)
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class LitData(pytorch_lightning.LightningDataModule):
    """The scans; 300 of them validate."""

    def setup(self, stage: str) -> None:
        images, digits = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits)
        self.val, self.train = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 64)


def fit_in_lightning(module: pytorch_lightning.LightningModule, root: Path, epochs: int = 3) -> ModelCheckpoint:
    """Train in Lightning's own Trainer; what it kept the best by accuracy with."""
    best = ModelCheckpoint(dirpath=root, monitor="val_acc", mode="max", filename="{epoch}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        trainer = pytorch_lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[best], enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=root,
        )  # fmt: skip
        trainer.fit(module, datamodule=LitData())
    return best
