"""What the training tests train: scanned digits, a small network, a module that logs what a test tells it to."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import shipline as sl
from shipline.store import open_store
from shipline.train import Logger

Rows = Dataset[tuple[Tensor, ...]]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, digits = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(digits).long()


def rows(start: int, end: int) -> TensorDataset:
    """Some of the 1,797 scans: 64 pixels from 0 to 1, and the digit."""
    images, digits = _digits()
    return TensorDataset(images[start:end], digits[start:end])


def train_loader(count: int = 256, batch_size: int = 32, **options: Any) -> DataLoader[Any]:
    """Shuffled rows to train on."""
    return DataLoader(rows(0, count), batch_size, **({"shuffle": True} | options))


def val_loader(count: int = 100, batch_size: int = 32) -> DataLoader[Any]:
    """Rows that no train_loader has, where that takes fewer than 1,400."""
    return DataLoader(rows(1400, 1400 + count), batch_size)


class Digits(sl.DataModule):
    """Rows to train on, and others to validate with."""

    def __init__(self, count: int = 128, transform: Any = None) -> None:
        self.count = count

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(self.count)

    def val_dataloader(self) -> DataLoader[Any]:
        return val_loader(50)


class Mlp(sl.Module):
    """64 pixels -> the logits of ten digits; trained with momentum, so that its optimizer has a state."""

    def __init__(self, hidden: int = 32, dropout: float = 0.0, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, digit = batch
        loss = F.cross_entropy(self(image), digit)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        image, digit = batch
        logits = self(image)
        self.log("val_loss", F.cross_entropy(logits, digit), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == digit).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def digits_module(seed: int = 0, **options: Any) -> Mlp:
    """The small network, with the weights of this seed."""
    torch.manual_seed(seed)
    return Mlp(**options)


class Scripted(sl.Module):
    """Logs `scores[epoch]` as `name` in validation; it learns nothing."""

    def __init__(self, scores: Sequence[float] = (), name: str = "score") -> None:
        super().__init__()
        self.scores = scores
        self.name = name
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.scores:
            self.log(self.name, self.scores[self.current_epoch])

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbers(count: int, batch_size: int = 1) -> DataLoader[Any]:
    """Batches of the numbers 0, 1, 2 ..., in order."""
    return DataLoader(TensorDataset(torch.arange(float(count))), batch_size=batch_size)


def new_trainer(root: str | Path, **options: Any) -> sl.Trainer:
    """A Trainer on the CPU that prints nothing; its runs lie below `root`."""
    quiet: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": str(root), "enable_progress_bar": False}
    quiet["enable_model_summary"] = False
    return sl.Trainer(**(quiet | options))


def bare_trainer(**options: Any) -> sl.Trainer:
    """A Trainer that keeps no files either."""
    return new_trainer("memory://unused", **({"logger": False, "enable_checkpointing": False} | options))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights are equal, bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metric_rows(run: str) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without the empty fields."""
    text = open_store(run).read("metrics.csv").decode()
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(text))]


class Recorder(Logger):
    """A logger that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def of(self, name: str) -> list[tuple[int, float]]:
        """The steps and values at which a metric was logged."""
        return [(step, metrics[name]) for step, metrics in self.rows if name in metrics]


def on_hook(name: str, function: Callable[..., Any]) -> sl.Callback:
    """A callback that calls a function with trainer, module and what else comes at one hook."""

    def act(_self: sl.Callback, *arguments: Any) -> Any:
        return function(*arguments)

    callback: sl.Callback = type("OnHook", (sl.Callback,), {name: act})()
    return callback


class StepsByHand(sl.Module):
    """Before a module with a training step: what the loop does for it otherwise, done inside the step."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Counting(Mlp):
    """Counts the rows of validation, and those that it has right: sums that must be exact."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        image, digit = batch
        self.log("rows", float(len(digit)), reduce_fx="sum")
        self.log("right", (self(image).argmax(1) == digit).sum(), reduce_fx="sum")


class FailsOnOneWorker(Mlp):
    """Raises in the second step of the second worker."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1 and self.trainer.global_rank == 1:
            raise ValueError("the disk of this worker is full")
        return super().training_step(batch, batch_idx)


class CountsSteps(sl.Callback):
    """A callback with a state."""

    def __init__(self, name: str = "steps") -> None:
        self.name = name
        self.count = 0

    @property
    def state_key(self) -> str:
        return self.name

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
