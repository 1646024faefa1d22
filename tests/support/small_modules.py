"""A user's code in small: two modules that train in a second, on real data that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl
from shipline.export.rows import Rows, recording
from shipline.processing import Columns, Labels, Processing, Softmax
from shipline.train import Run


class Tiny(sl.Module):
    """A scan of 64 pixels -> the logits of ten digits; with dropout, because an export in training mode would show."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """How the steps call forward; subclasses whose forward has another form change this, too."""
        out: torch.Tensor = self(x)
        return out

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        out = self.logits(batch[0])
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())
        self.log("val_loss", F.cross_entropy(out, batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Digits(sl.DataModule):
    """The scans as rows of 64 numbers; 300 of them validate."""

    def setup(self, stage: str) -> None:
        images, digits = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits)
        self.val, self.train = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 64)


class Cells(Tiny):
    """The measures of a cell's nucleus -> the logits of malignant and benign."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


class CellTable(sl.DataModule):
    """Rows of a table, as the JSON objects that a client would send."""

    names, classes = (tuple(map(str, load_breast_cancer()[key])) for key in ("feature_names", "target_names"))
    processing = Processing(before=[Columns(numeric=names)], after=[Softmax(), Labels(names=classes)])

    def setup(self, stage: str) -> None:
        table, classes = load_breast_cancer(return_X_y=True)
        self.raw = [dict(zip(self.names, map(float, row), strict=True)) for row in table]
        rows = torch.from_numpy(np.stack([self.processing.prepare(row) for row in self.raw]))
        self.rows = TensorDataset(rows, torch.from_numpy(classes))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.Subset(self.rows, range(121, len(self.raw))), 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.Subset(self.rows, range(121)), 64)

    def raw_rows(self) -> Iterable[Any]:
        return self.raw[:121]


class Does(nn.Module):
    """A module whose forward is this function of x."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def fit(module: sl.Module, data: sl.DataModule, root: Path | str, *, epochs: int = 6, **settings: Any) -> Run:
    """Train and keep the best by accuracy."""
    best = sl.ModelCheckpoint(monitor="val_acc", mode="max")
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "callbacks": [best]}
    return sl.Trainer(max_epochs=epochs, default_root_dir=str(root), **{**quiet, **settings}).fit(module, data)


def record(module: nn.Module, *batches: dict[str, torch.Tensor], limit: int = 256) -> Rows:
    """The rows of these calls of a module in evaluation mode."""
    with recording(module.eval(), limit) as rows, torch.no_grad():
        for batch in batches:
            module(**batch)
    return rows
