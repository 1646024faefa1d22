"""Which data this is, as a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shipline.train.data.generators import Generators
from shipline.train.data.streamed import StreamedRows

FINGERPRINT_ROWS = 64


def fingerprint(*loaders: Any) -> str:
    """Return a digest of the number of rows behind each loader, and of a sample of evenly spaced ones.

    Of rows that are streamed it is that of their files: how many, and the names and sizes of some.
    """
    digest = hashlib.sha256()
    for loader in loaders:
        generators = Generators(loader)  # to look at rows must not change those that training sees
        before = generators.state_dict()
        for item in _sample(loader):
            _feed(digest, item)
        generators.load_state_dict(before)
    return f"sha256:{digest.hexdigest()}"


def _sample(loader: Any) -> Iterator[Any]:
    dataset: Any = getattr(loader, "dataset", None) if isinstance(loader, DataLoader) else None
    if isinstance(dataset, StreamedRows):
        yield from dataset.sample(FINGERPRINT_ROWS)
        return
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
