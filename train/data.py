"""The DataModule: where the rows come from, and how a raw input becomes one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shipline.errors import ConfigError
from shipline.processing import Processing

FINGERPRINT_ROWS = 64


class DataModule:
    """Loaders for training, validation, test and prediction; names and meanings are PyTorch Lightning's.

    Attributes:
        processing: the steps from a raw input to a row and from an output to an answer. Use it to make the rows of
            the datasets: then training, export and the server prepare inputs with the very same object.
    """

    processing: Processing | None = None

    def prepare_data(self) -> None:
        """Download or convert, once per machine; keep nothing on `self`."""

    def setup(self, stage: str) -> None:
        """Make the datasets for a stage: fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """Give back what `setup` took."""

    def train_dataloader(self) -> Any:
        """Return the loader of training batches."""
        raise ConfigError(f"{type(self).__name__} has no train_dataloader: return a DataLoader from it.")

    def val_dataloader(self) -> Any:
        """Return the loader of validation batches, or None."""
        return None

    def test_dataloader(self) -> Any:
        """Return the loader of test batches, or None."""
        return None

    def predict_dataloader(self) -> Any:
        """Return the loader of batches to predict, or None."""
        return None

    def raw_rows(self) -> Iterable[Any]:
        """Return raw inputs of validation rows as clients will send them: bytes of a file, or a JSON value.

        Export proves with them that the processing prepares what the module was validated on.
        """
        return ()

    def fingerprint(self) -> str:
        """Return a digest that says which data this is: the number of rows, and a sample of evenly spaced ones."""
        digest = hashlib.sha256()
        for loader in (self.train_dataloader(), self.val_dataloader()):
            for item in _sample(loader):
                _feed(digest, item)
        return f"sha256:{digest.hexdigest()}"


class Loaders(DataModule):
    """A DataModule of loaders that are there already."""

    def __init__(self, train: Any = None, val: Any = None, test: Any = None, predict: Any = None) -> None:
        self._loaders = {"train": train, "val": val, "test": test, "predict": predict}

    def train_dataloader(self) -> Any:
        """Return the loader given."""
        if self._loaders["train"] is None:
            raise ConfigError("There is no data to train on: give train_dataloaders.")
        return self._loaders["train"]

    def val_dataloader(self) -> Any:
        """Return the loader given."""
        return self._loaders["val"]

    def test_dataloader(self) -> Any:
        """Return the loader given."""
        return self._loaders["test"]

    def predict_dataloader(self) -> Any:
        """Return the loader given."""
        return self._loaders["predict"]


def _sample(loader: Any) -> Iterator[Any]:
    dataset: Any = getattr(loader, "dataset", None) if isinstance(loader, DataLoader) else None
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return
    rows = len(dataset)
    yield rows
    for index in sorted({int(i) for i in np.linspace(0, rows - 1, min(rows, FINGERPRINT_ROWS))}):
        yield dataset[index]


def _feed(digest: Any, item: Any) -> None:
    if isinstance(item, torch.Tensor):
        item = (item.float() if item.dtype == torch.bfloat16 else item).detach().cpu().numpy()
    if isinstance(item, np.ndarray):
        digest.update(f"{item.dtype}{item.shape}".encode())
        digest.update(np.ascontiguousarray(item).tobytes())
    elif isinstance(item, dict):
        for key, value in item.items():
            digest.update(str(key).encode())
            _feed(digest, value)
    elif isinstance(item, list | tuple):
        for value in item:
            _feed(digest, value)
    else:  # the repr of an object may hold its address, which says nothing of the data
        plain = item is None or isinstance(item, str | bytes | int | float)
        digest.update((repr(item) if plain else type(item).__qualname__).encode())
