"""Batches of a `ray.data.Dataset`: one order for all workers, each of whom has a share of it.

Nothing here imports Ray: who has such a dataset has imported it. Its own position in an epoch nobody can ask for or
set; but its order is always the same here, so a run that goes on passes over the batches that were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from shipline.errors import ConfigError, nearest
from shipline.train.seed import current_seed

if TYPE_CHECKING:
    from shipline.train.strategies import Strategy

#: What is passed on to Ray's `iter_torch_batches`.
_OPTIONS = ("collate_fn", "drop_last", "dtypes", "pin_memory", "prefetch_batches")


def is_ray_dataset(item: Any) -> bool:
    """Whether it is a `ray.data.Dataset`."""
    kinds = type(item).__mro__
    return any(kind.__name__ == "Dataset" and kind.__module__.startswith("ray.data.") for kind in kinds)


def own_rows(loader: Any) -> Any:
    """Return a `ray.data.Dataset` as RayRows, and any other loader as it is."""
    return RayRows(loader) if is_ray_dataset(loader) else loader


class RayRows:
    """Batches of a `ray.data.Dataset`, as its `iter_torch_batches` gives them: tensors [batch, ...] by column.

    Where a Trainer takes a loader, a bare dataset is `RayRows(dataset)`. Workers share its rows by Ray's
    `streaming_split`: in training equally many each, so that of an epoch's last rows fewer than there are workers may
    be left out; in evaluation all of them, in the batches that one worker would see.

    Args:
        dataset: the order of whose rows is kept (Ray's `preserve_order`), or a resumed run would not know where it is.
        batch_size: rows of a batch of each worker.
        columns: give the tensors of these columns, in this order, as a tuple in place of the dict.
        shuffle: take each row at random from so many; 0: in order. Another order in each epoch, the same from the same
            seed. A dataset that shuffles itself (`random_shuffle`, `read_*(shuffle=...)`) needs a seed for that.
        seed: of the shuffling; default: that of `seed_everything`, or 0.
        options: of `iter_torch_batches`: collate_fn, drop_last, dtypes, pin_memory, prefetch_batches.

    Raises:
        ConfigError: it is no such dataset; or a setting means nothing.
    """

    # Slots: what looks for random generators in loaders would else walk through all of Ray.
    __slots__ = (
        "_epoch", "_group", "_running", "_source", "batch_size", "columns", "dataset", "options", "seed", "shuffle",
    )  # fmt: skip

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 256,
        *,
        columns: Sequence[str] | None = None,
        shuffle: int = 0,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        if not is_ray_dataset(dataset):
            raise ConfigError(
                f"RayRows has a {type(dataset).__name__}; give a ray.data.Dataset, such as ray.data.read_parquet(...), "
                "and anything else to a DataLoader."
            )
        for name, value, least in (("batch_size", batch_size, 1), ("shuffle", shuffle, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"RayRows has {name}={value!r}; set a number of rows from {least} on.")
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"RayRows has {name}.{nearest(name, _OPTIONS)} Known: {', '.join(_OPTIONS)}.")
        if isinstance(columns, str):
            raise ConfigError(f"RayRows has columns={columns!r}; set a list of names, such as [{columns!r}].")
        self.dataset, self.batch_size, self.options = dataset, batch_size, options
        self.columns, self.shuffle, self.seed = columns, shuffle, seed
        self._epoch = 0
        self._source: Any = None  # this worker's share, where Ray divides them
        self._group: tuple[int, int] | None = None  # this worker's place, where each takes every n-th batch
        self._running: Iterator[Any] | None = None

    def sharded(self, strategy: Strategy, *, equal: bool) -> RayRows:
        """Return the rows of one of several workers, all of whom call it.

        Args:
            strategy: of the workers.
            equal: as many for each; else all rows, and of the batches of one worker every n-th.
        """
        own = RayRows(
            self.dataset, self.batch_size, columns=self.columns, shuffle=self.shuffle, seed=self.seed, **self.options
        )
        own._epoch = self._epoch
        if strategy.data_world_size == strategy.world_size:
            from shipline.train.launch.rows import split, taken

            dataset, size = self.dataset, None if equal else self.batch_size
            shares = split(dataset, strategy.world_size, size) if strategy.rank == 0 else None
            own._source = taken(strategy.broadcast(shares), strategy.rank)
        else:  # some workers see the same rows, and Ray gives each row to one
            own._group = strategy.data_rank, strategy.data_world_size
        return own

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        if self._source is None:
            return self._of_group(self._batches())
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined] # Ray must not take its end for that of the next epoch
        self._running = batches = self._batches()
        # Ray begins an epoch when all workers have asked for it: also those of whom no batch is wanted.
        first = list(islice(batches, 1))
        return _followed(first, batches)

    def _batches(self) -> Iterator[Any]:
        source = self._source
        if source is None:
            from shipline.train.launch.rows import ordered

            source = ordered(self.dataset)
        options = {"batch_size": self.batch_size, "device": "cpu", **self.options}
        if self.shuffle:
            options |= {"local_shuffle_buffer_size": self.shuffle, "local_shuffle_seed": self._seed()}
        for batch in source.iter_torch_batches(**options):
            yield batch if self.columns is None else self._chosen(batch)

    def _of_group(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Every n-th batch, of as many as there are for all."""
        rank, size = self._group or (0, 1)
        while len(group := list(islice(batches, size))) == size:
            yield group[rank]

    def _chosen(self, batch: Any) -> tuple[Any, ...]:
        assert self.columns is not None
        try:
            return tuple(batch[name] for name in self.columns)
        except (KeyError, TypeError) as error:
            have = ", ".join(map(repr, batch)) if isinstance(batch, dict) else f"a {type(batch).__name__}"
            raise ConfigError(f"RayRows has columns={list(self.columns)}, and a batch has {have}.") from error

    def _seed(self) -> int:
        seed = (current_seed() or 0) if self.seed is None else self.seed
        return int(np.random.SeedSequence([seed, self._epoch]).generate_state(1)[0])


def _followed(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest
