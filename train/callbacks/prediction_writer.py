"""What is done with predictions as they come."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError
from shipline.train.accelerators.devices import to_device
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer


class WriteInterval(StrEnum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after each batch."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Whether at the end, all at once."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Derive a class that stores predictions, and override one of the two functions or both.

    On several workers each writes those of the batches that it had, no row twice: put `trainer.global_rank` into the
    names of files. `trainer.predict(..., return_predictions=False)` keeps none in memory beside those to be written.

    Args:
        write_interval: "batch", "epoch" or "batch_and_epoch".
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        choices = [interval.value for interval in WriteInterval]
        if write_interval not in choices:
            raise ConfigError(
                f"{type(self).__name__} has write_interval={write_interval!r}; choose one of {', '.join(choices)}."
            )
        self.interval = WriteInterval(write_interval)
        self._predictions: list[list[Any]] = []
        self._indices: list[list[Sequence[Any] | None]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Module,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of a batch.

        Args:
            trainer: that predicts.
            pl_module: the module.
            prediction: what `predict_step` returned.
            batch_indices: the indices of the batch's rows in the dataset; None where the loader has no such indices.
            batch: what `predict_step` got.
            batch_idx: the number of the batch among those of all workers.
            dataloader_idx: the number of its loader.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write_on_batch_end: define it.")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: Module, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write all predictions.

        Args:
            trainer: that predicts.
            pl_module: the module.
            predictions: of each batch of this worker, on the CPU; of several loaders, a list for each.
            batch_indices: for each loader a list with the indices of each batch, as in `write_on_batch_end`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write_on_epoch_end: define it.")

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Ask the loaders to say which rows they give."""
        for source in trainer.sources:
            source.feed.record_indices()
        self._predictions = [[] for _ in trainer.sources]
        self._indices = [[] for _ in trainer.sources]

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write, or keep for the end."""
        indices = trainer.sources[dataloader_idx].feed.batch_indices
        if self.interval.on_epoch:
            self._predictions[dataloader_idx].append(to_device(outputs, torch.device("cpu")))
            self._indices[dataloader_idx].append(indices)
        if self.interval.on_batch:
            self.write_on_batch_end(trainer, module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Write what was kept."""
        if self.interval.on_epoch:
            kept = self._predictions[0] if len(self._predictions) == 1 else self._predictions
            self.write_on_epoch_end(trainer, module, kept, self._indices)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Forget what was kept."""
        self._predictions, self._indices = [], []
