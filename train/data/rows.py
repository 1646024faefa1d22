"""A TensorDataset's batches taken by one indexing of its tensors, instead of row by row and stacked again.

`default_collate` of the rows of a TensorDataset is the same tensors, bit for bit: a list with one stacked tensor for
each of the dataset's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate


class WholeBatches(Dataset[Any]):
    """A TensorDataset, or a part of one, that gives a batch for a list of indices."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._rows: list[Sequence[int]] = []
        found = dataset
        while isinstance(found, Subset):
            self._rows.append(found.indices)
            found = found.dataset
        self._tensors: tuple[torch.Tensor, ...] = found.tensors

    def __getitems__(self, indices: list[Any]) -> Any:
        """Return the batch of these rows."""
        rows = indices
        for part in self._rows:
            rows = [part[row] for row in rows]
        try:
            picked = torch.tensor(rows)
        except (TypeError, ValueError):  # a sampler of the user's may yield anything that indexes a tensor
            return default_collate([self._dataset[index] for index in indices])
        return [tensor[picked] for tensor in self._tensors]

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("batches come from __getitems__")  # the fetcher prefers it


def whole_batches(loader: DataLoader[Any]) -> WholeBatches | None:
    """Return the loader's dataset as one that gives whole batches, None where that is not the very same thing."""
    dataset: Any = loader.dataset
    while type(dataset) is Subset:
        dataset = dataset.dataset
    plain = type(dataset) is TensorDataset and loader.collate_fn is default_collate and loader.batch_sampler is not None
    if not plain or loader.num_workers:
        return None
    # Stacked rows are contiguous, whatever the layout of what they were taken from.
    usual = all(t.layout is torch.strided and t.is_contiguous() and not t.requires_grad for t in dataset.tensors)
    return WholeBatches(loader.dataset) if usual else None


def as_it_is(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch
