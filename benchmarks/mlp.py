"""The model that the benchmarks share: so small, on scikit-learn's scanned digits, that overhead is all there is."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl


class Mlp(sl.Module):
    """64-256-256-10."""

    signature = sl.Signature(
        inputs=(sl.TensorSpec(name="x", dtype="float32", shape=(-1, 64)),),
        outputs=(sl.TensorSpec(name="output", dtype="float32", shape=(-1, 10)),),
    )

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of ten digits."""
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the cross entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Digits(sl.DataModule):
    """The scans as rows of 64 numbers."""

    def setup(self, stage: str) -> None:
        """Load them."""
        x, y = load_digits(return_X_y=True)
        rows = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
        self.val, self.train = torch.utils.data.random_split(
            rows, [360, len(rows) - 360], torch.Generator().manual_seed(0)
        )

    def train_dataloader(self) -> DataLoader[list[torch.Tensor]]:
        """Return batches of 32."""
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[list[torch.Tensor]]:
        """Return batches of 64."""
        return DataLoader(self.val, 64)


def publish(directory: str) -> str:
    """Train, export as float32 and return the URL of the repository."""
    sl.seed_everything(0)
    trainer = sl.Trainer(
        max_epochs=5,
        default_root_dir=f"{directory}/runs",
        enable_progress_bar=False,
        callbacks=[sl.ModelCheckpoint(monitor="val_acc", mode="max")],
    )
    run = trainer.fit(Mlp(), Digits())
    sl.export(run, "float32", to=f"{directory}/models/mlp")
    return f"{directory}/models"
