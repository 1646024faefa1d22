"""A loader goes on from any batch as if it had never stopped: rows, order, and every random number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from shipline.errors import ConfigError
from shipline.train.data import CombinedLoader, Feed, any_feed
from shipline.train.data.rows import WholeBatches, whole_batches
from shipline.train.seed import rng_state, set_rng_state

# PyTorch warns of fewer cores than workers, and of what torchdata calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]


class Drawn(Dataset[Any]):
    """Rows with numbers from every global generator and from three of the dataset's own, one of them deep inside."""

    def __init__(self, count: int = 20) -> None:
        self.count = count
        self.own = np.random.default_rng(3)
        self.python = random.Random(5)
        self.transforms = {"deep": [torch.Generator().manual_seed(4)]}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        deep = torch.rand(1, generator=self.transforms["deep"][0]).item()
        drawn = [random.random(), np.random.rand(), torch.rand(1).item(), self.own.random(), self.python.random(), deep]
        return torch.tensor([index, *drawn], dtype=torch.float64)


class Lazy(Sampler[int]):
    """Draws each index when it is asked for, from a generator that training draws from, too."""

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(20) for _ in range(20))


class Stream(IterableDataset[Any]):
    """Numbers with noise, of unknown length."""

    def __iter__(self) -> Iterator[float]:
        return (index + random.random() for index in range(17))


class Stateful(Stream):
    """The same, which says where it is."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[float]:
        while self.at < 17:
            self.at += 1
            yield self.at + random.random()
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def seed_workers(worker: int) -> None:
    np.random.seed(worker)


LOADERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: DataLoader(Drawn(), 3, shuffle=True),
    "a generator of its own": lambda: DataLoader(Drawn(), 3, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "a sampler that draws lazily": lambda: DataLoader(Drawn(), 3, sampler=Lazy()),
    "rows, not batches": lambda: DataLoader(Drawn(5), None, shuffle=True),
    "tensors": lambda: DataLoader(TensorDataset(torch.arange(20.0)), 3, shuffle=True),
    "two workers": lambda: DataLoader(Drawn(), 3, shuffle=True, num_workers=2),
    "two workers that stay": lambda: DataLoader(Drawn(), 3, shuffle=True, num_workers=2, persistent_workers=True),
    "three workers that stay": lambda: DataLoader(
        Drawn(), 3, shuffle=True, num_workers=3, persistent_workers=True, generator=torch.Generator().manual_seed(1)
    ),
    "workers of the user's": lambda: DataLoader(Drawn(), 3, shuffle=True, num_workers=2, worker_init_fn=seed_workers),
    "a stream": lambda: DataLoader(Stream(), 4),
    "a stateful dataset": lambda: DataLoader(Stateful(), 4),
    "torchdata's loader": lambda: StatefulDataLoader(Drawn(), 3, shuffle=True),
    "torchdata's loader with workers": lambda: StatefulDataLoader(Drawn(), 3, shuffle=True, num_workers=2),
    "torchdata's loader of a stateful dataset": lambda: StatefulDataLoader(Stateful(), 4),
    "any iterable": lambda: [[torch.tensor([index])] for index in range(6)],
    "several, the short ones anew": lambda: CombinedLoader(
        {"a": DataLoader(Drawn(8), 3, shuffle=True), "b": [DataLoader(Drawn(), 3, shuffle=True)]}, "max_size_cycle"
    ),
    "several, to the longest": lambda: CombinedLoader(
        [DataLoader(Drawn(8), 3, shuffle=True), DataLoader(Drawn(), 3, shuffle=True)], "max_size"
    ),
    "several, to the shortest": lambda: CombinedLoader(
        [DataLoader(Drawn(8), 3, shuffle=True, num_workers=2), DataLoader(Drawn(), 3, shuffle=True)], "min_size"
    ),
}
EPOCHS = 2


def count_of(feed: Feed) -> int | None:
    try:
        return len(feed)
    except TypeError:
        return None


def batches(feed: Feed, epoch: int = 0) -> Iterator[tuple[Any, int]]:
    """The batches of the epochs from this one on, training drawing random numbers in between; and what is next."""
    for number in range(epoch, EPOCHS):
        for batch, _last in feed.batches(count_of(feed)):
            torch.rand(3)
            random.random()
            yield batch, number
        feed.end_epoch()


def begin(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(torch.equal(one, other)) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize(("every", "first"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_feed_goes_on_from_every_batch(kind: str, every: int, first: int) -> None:
    """Also in the second epoch, and where a worker takes every second batch."""
    begin(0)
    feed = any_feed(LOADERS[kind](), every, first)
    whole: list[Any] = []
    states: list[Any] = []
    for batch, epoch in batches(feed):
        whole.append(batch)
        states.append((epoch, rng_state(), feed.state_dict()))
    # Worker processes take a while to start: of their positions, some that fall differently into the round.
    chosen = range(len(states)) if "work" not in kind else sorted({0, 1, 4, len(states) // 2, len(states) - 2})
    for index in chosen:
        epoch, generators, state = states[index]
        begin(99)
        resumed = any_feed(LOADERS[kind](), every, first)
        resumed.load_state_dict(state)
        set_rng_state(generators)
        rest = [batch for batch, _ in batches(resumed, epoch)]
        assert same(rest, whole[index + 1 :]), index


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind not in ("any iterable", "a stateful dataset")])
def test_a_feed_goes_on_after_an_epoch(kind: str) -> None:
    """Nothing of the epoch is left: what generators and workers keep over epochs is all there is to go on with."""
    begin(0)
    feed = any_feed(LOADERS[kind]())
    first = [batch for batch, _last in feed.batches(count_of(feed))]
    feed.end_epoch()
    state, generators = feed.state_dict(), rng_state()
    second = [batch for batch, _last in feed.batches(count_of(feed))]
    feed.end_epoch()
    assert not same(first, second)
    begin(99)
    resumed = any_feed(LOADERS[kind]())
    resumed.load_state_dict(state)
    set_rng_state(generators)
    assert same([batch for batch, _last in resumed.batches(count_of(resumed))], second)


@pytest.mark.parametrize(
    "kind", ["plain", "a generator of its own", "two workers", "workers of the user's", "a stream"]
)
def test_a_feed_gives_what_its_loader_gives(kind: str) -> None:
    """Batch by batch, with the same random numbers, and leaves the generators as the loader does."""
    begin(0)
    loader = LOADERS[kind]()
    plain = [batch for _ in range(2) for batch in loader]
    after = rng_state()
    begin(0)
    feed = any_feed(LOADERS[kind]())
    assert same([batch for _ in range(2) for batch in feed.each()], plain)
    assert rng_state() == after


def test_the_last_batch_is_known_where_the_length_is_not() -> None:
    feed = any_feed(DataLoader(Stream(), 4))
    assert [last for _, last in feed.batches(None)] == [False] * 4 + [True]
    assert [last for _, last in feed.batches(None, most=2)] == [False, False]
    assert [last for _, last in any_feed(DataLoader(Drawn(4), 2)).batches(2)] == [False, True]


# ---- whole batches ---------------------------------------------------------------------------------------------------

TENSORS = TensorDataset(torch.randn(20, 3), torch.arange(20), torch.rand(20, 2, 2) > 0.5)


@pytest.mark.parametrize(
    "dataset", [TENSORS, Subset(TENSORS, [5, 3, 19, 4]), Subset(Subset(TENSORS, range(9)), [8, 2])]
)
def test_whole_batches_are_the_collated_rows(dataset: Any) -> None:
    loader = DataLoader(dataset, 3)
    whole = whole_batches(loader)
    assert whole is not None
    for indices in ([0, 1], [1], [-1, 0], [torch.tensor(1), np.int64(0)]):
        rows = default_collate([dataset[index] for index in indices])
        batch = whole.__getitems__(indices)
        assert type(batch) is type(rows)
        assert same(batch, rows)
        assert [(part.dtype, part.stride()) for part in batch] == [(part.dtype, part.stride()) for part in rows]
    assert same(list(any_feed(loader).each()), list(loader))


class OwnTensors(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)[0] * 2


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(OwnTensors(torch.arange(4.0)), 2),
        DataLoader(TENSORS, 2, collate_fn=list),
        DataLoader(TENSORS, None),
        DataLoader(TENSORS, 2, num_workers=1),
        DataLoader(TensorDataset(torch.ones(4, 3, 2).transpose(1, 2)), 2),
        DataLoader(TensorDataset(torch.ones(4, requires_grad=True)), 2),
    ],
)
def test_what_is_not_the_very_same_thing_goes_row_by_row(loader: DataLoader[Any]) -> None:
    assert whole_batches(loader) is None
    assert same(list(any_feed(loader).each()), list(loader))


def test_an_index_out_of_range_is_an_error_as_it_was() -> None:
    with pytest.raises(IndexError):
        WholeBatches(TENSORS).__getitems__([20])


# ---- several loaders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [{"a": 0, "b": [0]}, {"a": 1, "b": [1]}]),
        ("max_size", [{"a": 0, "b": [0]}, {"a": 1, "b": [1]}, {"a": None, "b": [2]}]),
        ("max_size_cycle", [{"a": 0, "b": [0]}, {"a": 1, "b": [1]}, {"a": 0, "b": [2]}]),
    ],
)
def test_modes_of_combination(mode: Any, expected: list[Any]) -> None:
    combined = CombinedLoader({"a": range(2), "b": [range(3)]}, mode)
    feed = any_feed(combined)
    assert list(feed.each()) == expected
    assert len(feed) == len(expected)
    assert [(batch, index) for batch, index, _ in combined] == [(batch, n) for n, batch in enumerate(expected)]


def test_one_loader_after_the_other_is_for_evaluation() -> None:
    assert list(CombinedLoader([range(2), range(1)], "sequential")) == [(0, 0, 0), (1, 1, 0), (0, 0, 1)]
    with pytest.raises(ConfigError, match="Training takes a batch from each loader at once"):
        any_feed(CombinedLoader([range(2)], "sequential"))
    with pytest.raises(ConfigError, match="CombinedLoader has mode='longest'; choose one of min_size"):
        CombinedLoader([], "longest")  # type: ignore[arg-type]
