"""Rows of files on any store, read as they are needed: WebDataset's tar archives, Parquet, pictures.

All workers walk through one order of the rows, each taking every n-th; so an epoch gives every row once (the first few
twice, where rows do not divide by workers), and a run goes on at the very row, with as many workers or others.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from shipline.errors import ConfigError, NotFoundError
from shipline.store import Store, absolute, open_store, split
from shipline.train.data.formats import FORMATS, Row, reader

_BLOCK = 256  # rows, where they are not shuffled: so many are read again at most by a run that goes on


class StreamedRows(IterableDataset[Any]):
    """Rows of all files below a URL, in the order of the files' names.

    A row is a dict, and nothing in it is decoded yet:

    - of a tar archive its files by ending, each as bytes, as WebDataset has them: `{"__key__": "train/0001",
      "jpg": b"…", "cls": b"3"}` (https://github.com/webdataset/webdataset#the-webdataset-format);
    - of Parquet its columns, as Python's numbers, strings, bytes and lists: `{"pixels": [0.0, …], "digit": 3}`;
    - of a picture its bytes by ending, and its path below the URL: `{"__key__": "cats/7", "png": b"…"}`.

    A DataLoader stacks what `transform` returns: for tensors of shape [...] batches of [batch, ...].

    Args:
        url: a directory, searched with those in it, or a file: .tar, .tar.gz, .tgz, .parquet, .jpg, .jpeg, .png, .webp.
        transform: from a row to what training takes; it is not called for rows of other workers.
        shuffle: take the files in another order in each epoch, and mix the rows within blocks of so many; 0: neither.
            So many rows are held in memory.
        seed: of the shuffling.

    Raises:
        ConfigError: a setting means nothing. When rows are read: a file is damaged; the message names it.
        NotFoundError: when rows are read: no such file is there.
        StoreError: when rows are read: the store cannot be reached.
        MissingExtraError: when rows are read: Parquet without pyarrow.
    """

    def __init__(
        self, url: str, transform: Callable[[Row], Any] | None = None, *, shuffle: int = 0, seed: int = 0
    ) -> None:
        if isinstance(shuffle, bool) or not isinstance(shuffle, int) or shuffle < 0:
            raise ConfigError(f"StreamedRows has shuffle={shuffle!r}; set a number of rows from 0 on.")
        self.url, self.transform, self.shuffle, self.seed = absolute(url), transform, shuffle, seed
        self._rank, self._world_size = 0, 1
        self._epoch = 0
        self._files: list[str] | None = None
        self._place: dict[str, Any] | None = None  # where the next iteration begins; None: at the beginning
        self._now: dict[str, Any] = {}

    def sharded(self, rank: int, world_size: int) -> Self:
        """Return the rows of one of several workers."""
        own = copy.copy(self)
        own._rank, own._world_size = rank, world_size  # noqa: SLF001 -- of this class
        return own

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the rows stand that were given last, over all workers."""
        return dict(self._now)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self._now = dict(state)
        self._place = dict(state) if state and not state["ended"] else None
        if state:
            self._epoch = state["epoch"]

    def __iter__(self) -> Iterator[Any]:
        place, self._place = self._place or {"block": (0, 0), "taken": 0}, None
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        size, own = self._world_size * workers, self._rank * workers + number
        for group, then in self._groups(place, size):
            self._now = {"epoch": self._epoch, "ended": False, **then}
            yield group[own] if self.transform is None else self.transform(group[own])
        self._now = {"epoch": self._epoch + 1, "ended": True}

    def _groups(self, place: dict[str, Any], size: int) -> Iterator[tuple[list[Row], dict[str, Any]]]:
        """One row for each worker, and where the next group begins; the last group is filled with the first rows."""
        group: list[Row] = []
        then: dict[str, Any] = {}
        for row, after in self._mixed(place):
            group.append(row)
            then = after
            if len(group) == size:
                yield group, then
                group = []
        if group:
            first = itertools.cycle(row for row, _ in self._mixed({"block": (0, 0), "taken": 0}))
            yield [*group, *itertools.islice(first, size - len(group))], then

    def _mixed(self, place: dict[str, Any]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """The rows from a place on, mixed within blocks, and the place after each."""
        start, taken = tuple(place["block"]), place["taken"]
        source = self._in_order(*start)
        while block := list(itertools.islice(source, self.shuffle or _BLOCK)):
            order = self._order(len(block), start)
            for count, index in enumerate(order[taken:], taken + 1):
                yield block[index][0], {"block": start, "taken": count}
            start, taken = block[-1][1], 0

    def _order(self, count: int, start: tuple[int, ...]) -> list[int]:
        if not self.shuffle:
            return list(range(count))
        order: list[int] = np.random.default_rng([self.seed, self._epoch, *start]).permutation(count).tolist()
        return order

    def _in_order(self, file: int, row: int) -> Iterator[tuple[Row, tuple[int, int]]]:
        """The rows from one of a file on, and the place after each."""
        files = self.files()
        if self.shuffle:
            files = [files[index] for index in np.random.default_rng([self.seed, self._epoch]).permutation(len(files))]
        store, skip = self._store(), row
        for number in range(file, len(files)):
            for index, found in enumerate(reader(files[number])(store, files[number])):
                if index >= skip:
                    yield found, (number, index + 1)
            skip = 0

    def files(self) -> list[str]:
        """Return the files' names below the URL, in order."""
        if self._files is None:
            store = self._store()
            name = split(self.url)[1]
            self._files = [name] if name.endswith(FORMATS) else sorted(_below(store, ""))
            if not self._files:
                raise NotFoundError(f"{store} has no file that ends in {', '.join(FORMATS)}: check the URL.")
        return self._files

    def sample(self, count: int) -> Iterator[Any]:
        """Return what says which files these are: how many, and names and sizes of so many of them."""
        files, store = self.files(), self._store()
        yield len(files)
        for index in sorted({int(i) for i in np.linspace(0, len(files) - 1, min(len(files), count))}):
            yield files[index], store.size(files[index])

    def _store(self) -> Store:
        parent, name = split(self.url)
        return open_store(parent if name.endswith(FORMATS) else self.url)


def _below(store: Store, directory: str) -> Iterator[str]:
    for name in store.list(directory):
        path = f"{directory}/{name}" if directory else name
        if name.endswith(FORMATS):
            yield path
        elif "." not in name:
            yield from _below(store, path)
