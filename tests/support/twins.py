"""The same run in PyTorch Lightning's Trainer and in ours, to compare what their callbacks do."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.loggers import Logger
from torch.nn import functional as F
from training import Recorder, bare_trainer, rows

Row = tuple[int | None, dict[str, float]]


class LightningRecorder(Logger):
    """One of Lightning's loggers, that remembers."""

    name = version = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_arguments: Any, **_named: Any) -> None: ...


class Digits(lightning.LightningModule):
    """A module of Lightning's, for both trainers: 64 pixels -> ten logits, without anything at random."""

    def __init__(self, optimizers: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.layer.load_state_dict({"weight": torch.linspace(-1, 1, 640).reshape(10, 64), "bias": torch.zeros(10)})
        self._optimizers = optimizers

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1) if self._optimizers is None else self._optimizers(self)


def loader(start: int = 0, count: int = 80, batch_size: int = 16) -> torch.utils.data.DataLoader[Any]:
    """Digits in order."""
    return torch.utils.data.DataLoader(rows(start, start + count), batch_size)


@dataclass
class Twin:
    """A Trainer, its callback, and what its logger was given."""

    trainer: Any
    callback: Any
    recorder: Any

    def rows(self, wanted: Callable[[str], bool]) -> list[Row]:
        """The rows with metrics of which the name is wanted, without the others."""
        found = [(step, {k: v for k, v in metrics.items() if wanted(k)}) for step, metrics in self.recorder.rows]
        return [(step, metrics) for step, metrics in found if metrics]


def twins(ours: Any, theirs: Any, **options: Any) -> tuple[Twin, Twin]:
    """Both trainers with their own callback and logger, which draw, print and keep nothing."""
    quiet = {"num_sanity_val_steps": 0, "log_every_n_steps": 1} | options
    one, other = Recorder(), LightningRecorder()
    with calm():
        lightnings = lightning.Trainer(
            accelerator="cpu", logger=other, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[theirs], **quiet,
        )  # fmt: skip
    return Twin(bare_trainer(logger=one, callbacks=[ours], **quiet), ours, one), Twin(lightnings, theirs, other)


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Without what Lightning has to say: of few data workers, and of its own future."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def fit_both(pair: tuple[Twin, Twin], make: Callable[[], Any], *loaders: Any) -> None:
    """Fit a module of each in both."""
    for twin in pair:
        with calm():
            twin.trainer.fit(make(), *(loaders or (loader(), loader(1400, 40))))
