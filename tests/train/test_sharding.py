"""Each worker's share of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from shipline.errors import ConfigError
from shipline.train.data import CombinedLoader, any_feed
from shipline.train.data.sharding import shard
from shipline.train.strategies import Strategy


class Range(Dataset[int]):
    """The numbers 0, 1, 2 ..."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def shares(loader: DataLoader[Any], world_size: int, epoch: int = 0) -> list[list[int]]:
    """The rows that each worker trains on, in its order."""
    found = []
    for rank in range(world_size):
        own = shard(loader, rank, world_size)
        own.sampler.set_epoch(epoch)
        found.append([int(row) for batch in own for row in batch])
    return found


def batches(loader: Any, world_size: int) -> list[list[Any]]:
    """The batches that each worker evaluates."""
    feeds = [any_feed(loader, world_size, rank) for rank in range(world_size)]
    return [[batch for batch, _last in feed.batches(None)] for feed in feeds]


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 7))
def test_in_evaluation_workers_share_the_batches_of_one(rows: int, world_size: int, batch_size: int) -> None:
    """Not their rows: so every batch is what one worker alone would see, and no row comes twice."""
    loader = DataLoader(Range(rows), batch_size)
    found = [[batch.tolist() for batch in share] for share in batches(loader, world_size)]
    alone = [batch.tolist() for batch in loader]
    assert [share[index // world_size] for index in range(len(alone)) for share in [found[index % world_size]]] == alone
    assert sum(map(len, found)) == len(alone)
    assert [len(any_feed(loader, world_size, rank)) for rank in range(world_size)] == list(map(len, found))


@given(st.integers(1, 40), st.integers(2, 6), st.booleans())
def test_in_training_all_workers_get_equally_many_rows(rows: int, world_size: int, shuffle: bool) -> None:
    found = shares(DataLoader(Range(rows), 4, shuffle=shuffle), world_size)
    assert len({len(share) for share in found}) == 1
    assert {row for share in found for row in share} == set(range(rows))
    assert sum(map(len, found)) < rows + world_size


def test_in_training_a_loader_that_drops_its_last_batch_repeats_no_row() -> None:
    found = shares(DataLoader(Range(11), 2, drop_last=True), 2)
    assert found == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_workers_shuffle_alike_and_anew_each_epoch() -> None:
    loader = DataLoader(Range(20), 4, shuffle=True)
    first, again, next_epoch = (shares(loader, 2, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != next_epoch
    assert sorted(first[0] + first[1]) == list(range(20))
    assert shares(DataLoader(Range(20), 4), 2)[0] == list(range(0, 20, 2))


def collate(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows) * 10


def test_a_share_keeps_the_settings_of_its_loader() -> None:
    generator = torch.Generator()
    loader = DataLoader(
        Range(8), 3, collate_fn=collate, num_workers=1, prefetch_factor=5, persistent_workers=True, timeout=9,
        drop_last=True, generator=generator, multiprocessing_context="spawn",
    )  # fmt: skip
    own = shard(loader, 0, 2)
    for name in (
        "dataset", "batch_size", "collate_fn", "num_workers", "prefetch_factor", "persistent_workers", "timeout",
        "drop_last", "generator", "pin_memory", "worker_init_fn", "multiprocessing_context",
    ):  # fmt: skip
        assert getattr(own, name) == getattr(loader, name), name
    assert [batch.tolist() for batch in shard(DataLoader(Range(4), 2, collate_fn=collate), 1, 2)] == [[10, 30]]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Reversed(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3, -1, -1))

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), 2),
        DataLoader(Range(4), batch_size=None),
        DataLoader(Range(4), batch_sampler=[[0, 1], [2]]),
        DataLoader(Range(4), batch_sampler=BatchSampler(Reversed(), 2, drop_last=False)),
        DataLoader(Range(4), sampler=Reversed()),
        DataLoader(Range(4), sampler=SubsetRandomSampler([0, 2])),
        DataLoader(Range(4), sampler=WeightedRandomSampler([1.0, 0.0, 0.0, 0.0], 4)),
        DataLoader(Range(4), sampler=RandomSampler(Range(4), replacement=True)),
        DataLoader(Range(4), sampler=RandomSampler(Range(4), num_samples=2)),
    ],
)
def test_an_order_of_the_users_own_is_not_replaced(loader: Any) -> None:
    """Other rows than the user chose would be a silent mistake; in evaluation each worker goes through that order."""
    with pytest.raises(ConfigError, match=r"3 workers need a share of the rows each, .* shard it yourself"):
        shard(loader, 0, 3)
    torch.manual_seed(0)
    alone = list(loader)
    shared: list[Any] = [None] * len(alone)
    for rank in range(3):
        torch.manual_seed(0)
        shared[rank::3] = [batch for batch, _last in any_feed(loader, 3, rank).batches(None)]
    assert [torch.as_tensor(batch).tolist() for batch in shared] == [torch.as_tensor(batch).tolist() for batch in alone]


@pytest.mark.parametrize(
    "loader",
    [
        None,
        DataLoader(Range(4), sampler=DistributedSampler(Range(4), num_replicas=2, rank=0)),
    ],
)
def test_what_is_sharded_already_is_left_alone(loader: Any) -> None:
    assert shard(loader, 0, 2) is loader


def test_each_of_several_loaders_is_shared() -> None:
    loaders = {"a": DataLoader(Range(4), 2), "b": [DataLoader(Range(6), 3)]}
    own = shard(loaders, 1, 2)
    assert [batch.tolist() for batch in own["a"]] == [[1, 3]]
    assert [batch.tolist() for batch in own["b"][0]] == [[1, 3, 5]]
    combined = shard(CombinedLoader(loaders, "min_size"), 1, 2)
    assert (combined.mode, len(combined.flattened)) == ("min_size", 2)


def test_one_process_takes_all() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(3)), sampler=SequentialSampler(Range(3)))
    strategy = Strategy()
    assert shard(loader, strategy.rank, strategy.world_size) is loader
    assert strategy.gather("x") == ["x"]
    strategy.barrier()
