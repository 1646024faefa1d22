"""Each worker's share of a DataLoader's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from shipline.errors import ConfigError
from shipline.train.seed import current_seed


class ExactShard(Sampler[int]):
    """Every `world_size`-th row from `rank` on: each row once over all workers, so shards may differ by one row."""

    def __init__(self, dataset: Sized, rank: int, world_size: int) -> None:
        self._rows = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def shard(loader: Any, rank: int, world_size: int, *, training: bool) -> Any:
    """Return a loader like `loader` over this worker's rows.

    In training all workers get equally many rows, shuffled alike if the loader shuffles: gradients are exchanged each
    step. Elsewhere each row comes up exactly once over all workers, so metrics are exact.

    Raises:
        ConfigError: the loader's order is the user's own, and so must its sharding be.
    """
    if loader is None or not isinstance(loader, DataLoader) or isinstance(loader.sampler, DistributedSampler):
        return loader
    if isinstance(loader.dataset, IterableDataset) or not _takes_each_row_once(loader):
        raise ConfigError(
            f"{world_size} workers need a share of the rows each, and this loader has an iterable dataset, or a "
            "sampler or batch sampler of its own: use a map-style dataset with batch_size and shuffle, or shard it "
            "yourself with a DistributedSampler."
        )
    return _rebuilt(loader, _sampler(loader, rank, world_size, training))


def _takes_each_row_once(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one of PyTorch's own, which can be replaced; a user's sampler means something."""
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        plain = not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    else:
        plain = type(sampler) is SequentialSampler
    batches = loader.batch_sampler
    return plain and type(batches) is BatchSampler and batches.sampler is sampler


def _sampler(loader: DataLoader[Any], rank: int, world_size: int, training: bool) -> Sampler[int]:
    if not training:
        return ExactShard(loader.dataset, rank, world_size)  # type: ignore[arg-type]
    return DistributedSampler(
        loader.dataset,
        num_replicas=world_size,
        rank=rank,
        shuffle=isinstance(loader.sampler, RandomSampler),
        seed=current_seed() or 0,
        drop_last=loader.drop_last,
    )


def _rebuilt(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        **workers,
    )
