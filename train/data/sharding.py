"""Each worker's share of a training loader's rows. In evaluation workers share batches instead: see `Order`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from shipline.errors import ConfigError
from shipline.train.data.combined import CombinedLoader, flatten, own_combined, unflatten
from shipline.train.data.ray_rows import RayRows, own_rows
from shipline.train.data.shares import SharedSampler
from shipline.train.seed import current_seed

if TYPE_CHECKING:
    from shipline.train.strategies import Strategy


def shard(loader: Any, rank: int, world_size: int, alone: bool = False, strategy: Strategy | None = None) -> Any:
    """Return a loader like `loader`, or several of them, over this worker's rows.

    All workers get equally many rows, shuffled alike if the loader shuffles: gradients are exchanged at each step.

    Args:
        loader: of all rows.
        rank: of this worker.
        world_size: workers.
        alone: shuffle as several workers do where there is one, who may be joined by others.
        strategy: of the workers, who have to agree on the shares of a dataset of Ray's.

    Raises:
        ConfigError: the loader's order is the user's own, and so must its sharding be.
    """
    if isinstance(loader, CombinedLoader):
        return CombinedLoader(shard(loader.iterables, rank, world_size, alone, strategy), loader.mode)
    if isinstance(loader, dict | list | tuple):
        return unflatten(loader, iter([shard(item, rank, world_size, alone, strategy) for item in flatten(loader)]))
    loader = own_rows(loader)
    if isinstance(loader, RayRows) and world_size > 1 and strategy is not None:
        return loader.sharded(strategy, equal=True)
    if (world_size == 1 and not alone) or not isinstance(loader, DataLoader) or is_sharded(loader):
        return loader
    if isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "sharded"):
        return _over(loader, loader.dataset.sharded(rank, world_size))
    if isinstance(loader.dataset, IterableDataset) or not _takes_each_row_once(loader):
        raise ConfigError(
            f"{world_size} workers need a share of the rows each, and this loader has an iterable dataset, or a "
            "sampler or batch sampler of its own: use a map-style dataset with batch_size and shuffle, StreamedRows "
            "or a ray.data.Dataset; shard it yourself with a DistributedSampler; or set use_distributed_sampler=False "
            "where it is sharded already."
        )
    return _with_sampler(
        loader,
        SharedSampler(
            loader.dataset,
            num_replicas=world_size,
            rank=rank,
            shuffle=isinstance(loader.sampler, RandomSampler),
            seed=current_seed() or 0,
            drop_last=loader.drop_last,
        ),
    )


def is_sharded(loader: Any) -> bool:
    """Whether the user has given each worker its rows already."""
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def unshuffled(loader: Any) -> Any:
    """Return a loader like `loader` that takes the rows in order, where its own order is a shuffled one."""
    loader = own_combined(loader)
    if isinstance(loader, CombinedLoader):
        return CombinedLoader(unshuffled(loader.iterables), loader.mode)
    if isinstance(loader, dict | list | tuple):
        return unflatten(loader, iter([unshuffled(item) for item in flatten(loader)]))
    if not isinstance(loader, DataLoader) or type(loader.sampler) is not RandomSampler:
        return loader
    return _with_sampler(loader, SequentialSampler(loader.dataset))  # type: ignore[arg-type]


def with_batch_size(loader: DataLoader[Any], batch_size: int) -> DataLoader[Any]:
    """Return a loader like `loader` with batches of another size."""
    return _rebuilt(loader, {"batch_size": batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last})


def _takes_each_row_once(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one of PyTorch's own, which can be replaced; a user's sampler means something."""
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        plain = not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    else:
        plain = type(sampler) is SequentialSampler
    batches = loader.batch_sampler
    return plain and type(batches) is BatchSampler and batches.sampler is sampler


def _over(loader: DataLoader[Any], dataset: IterableDataset[Any]) -> DataLoader[Any]:
    return _rebuilt(loader, {"batch_size": loader.batch_size, "drop_last": loader.drop_last}, dataset)


def _with_sampler(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    return _rebuilt(loader, {"batch_size": loader.batch_size, "sampler": sampler, "drop_last": loader.drop_last})


def _rebuilt(loader: DataLoader[Any], order: dict[str, Any], dataset: Any = None) -> DataLoader[Any]:
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return DataLoader(
        loader.dataset if dataset is None else dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        **order,
        **workers,
    )
