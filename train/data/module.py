"""The DataModule: where the rows come from, and how a raw input becomes one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from shipline.errors import ConfigError
from shipline.train.accelerators.devices import to_device
from shipline.train.data.fingerprint import fingerprint
from shipline.train.hooks import overrides
from shipline.train.options.arguments import KeepsArguments

if TYPE_CHECKING:  # its import takes time, and nothing here needs it
    from shipline.processing import Processing


class DataModule(KeepsArguments):
    """Loaders for training, validation, test and prediction; names and meanings are PyTorch Lightning's.

    Attributes:
        processing: the steps from a raw input to a row and from an output to an answer. Use it to make the rows of
            the datasets: then training, export and the server prepare inputs with the very same object.
    """

    processing: Processing | None = None
    #: The Trainer that runs.
    trainer: Any = None

    @property
    def adopted(self) -> Any:
        """The object whose hooks are called: this one, or what it stands for."""
        return self

    def prepare_data(self) -> None:
        """Download or convert, once per machine; keep nothing on `self`."""

    def setup(self, stage: str) -> None:
        """Make the datasets for a stage: fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """Give back what `setup` took."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when the run ends by an error or an interrupt."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain data; where loaders stand is kept without it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state of `state_dict`."""

    def train_dataloader(self) -> Any:
        """Return the loader of training batches, or several in a list or dict."""
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

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> DataModule:
        """Return a DataModule of these datasets; that to train on is shuffled. `options` are DataLoader's."""
        make: Any = partial(DataLoader, batch_size=batch_size, num_workers=num_workers, **options)
        rest = [None if data is None else make(data) for data in (val_dataset, test_dataset, predict_dataset)]
        shuffle = {} if isinstance(train_dataset, IterableDataset) else {"shuffle": True}
        return Loaders(None if train_dataset is None else make(train_dataset, **shuffle), *rest)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, still where the loader left it. Overridden here, it comes in place of the module's."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device. Overridden here, it comes in place of the module's."""
        return to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch as the steps take it. Overridden here, it comes in place of the module's."""
        return batch

    def has_loader(self, name: str) -> bool:
        """Whether there is a loader of this name: train, val, test or predict; none is asked for."""
        return overrides(self.adopted, f"{name}_dataloader")

    def raw_rows(self) -> Iterable[Any]:
        """Return raw inputs of validation rows as clients will send them: bytes of a file, or a JSON value.

        Export proves with them that the processing prepares what the module was validated on.
        """
        return ()

    def fingerprint(self) -> str:
        """Return a digest that says which data this is: the number of rows, and a sample of evenly spaced ones."""
        return fingerprint(self.train_dataloader(), self.val_dataloader())


class Loaders(DataModule):
    """A DataModule of loaders that are there already."""

    def __init__(self, train: Any = None, val: Any = None, test: Any = None, predict: Any = None) -> None:
        self._loaders = {"train": train, "val": val, "test": test, "predict": predict}

    def has_loader(self, name: str) -> bool:
        """Whether there is a loader of this name."""
        return self._loaders[name] is not None

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


# A Lightning script runs with the import changed, `import shipline.train as pl`: docs/from_lightning.md.
LightningDataModule = DataModule
