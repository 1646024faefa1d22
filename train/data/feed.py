"""A loader that knows its position, so that a run can go on in the middle of an epoch as if nothing had happened.

Any iterable will do. Of an ordinary DataLoader over a map-style dataset the batches before the position are not even
loaded; a loader with `state_dict` and `load_state_dict` goes there by itself; anything else is gone through again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from shipline.train.data.generators import Generators
from shipline.train.data.order import Order
from shipline.train.data.ray_rows import own_rows
from shipline.train.data.rows import as_it_is, whole_batches
from shipline.train.data.workers import Begin, History, Traced

_OPTIONS = (
    "num_workers", "pin_memory", "timeout", "multiprocessing_context", "prefetch_factor", "persistent_workers",
    "in_order",
)  # fmt: skip

State = dict[str, Any]


def feed(loader: Any, every: int = 1, first: int = 0) -> Feed:
    """Return the loader as a Feed, of each `every`-th batch from `first` on."""
    loader = own_rows(loader)
    if isinstance(loader, Feed):
        return loader
    if isinstance(loader, DataLoader) and _is_ordinary(loader) and not isinstance(loader.dataset, IterableDataset):
        return WorkerFeed(loader, every, first) if loader.num_workers else MapFeed(loader, every, first)
    if hasattr(loader, "load_state_dict"):
        return StatefulFeed(loader, loader, every, first)
    if isinstance(loader, DataLoader) and hasattr(loader.dataset, "load_state_dict") and not loader.num_workers:
        return StatefulFeed(loader, loader.dataset, every, first)
    return Feed(loader, every, first)


def _is_ordinary(loader: DataLoader[Any]) -> bool:
    """Whether the loader iterates as PyTorch's own does; what a subclass does in its own way is left to it.

    Over a dataset without a state, torchdata's StatefulDataLoader does, too, and would not bring back what its workers
    draw at random.
    """
    kind = type(loader)
    if kind.__name__ == "StatefulDataLoader" and kind.__module__.startswith("torchdata."):
        return not hasattr(loader.dataset, "load_state_dict")
    return kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator  # noqa: SLF001


class Feed:
    """Batches of an iterable, and how many of them this epoch has given; to resume, they are gone through again."""

    def __init__(self, loader: Any, every: int = 1, first: int = 0) -> None:
        self.loader = loader
        self.every, self.first = every, first
        self.position = 0
        self._generators = Generators(loader)
        # Of all generators: when the epoch began, and when its first batch was asked for, which is when samplers draw.
        self._start: State | None = None
        self._first: State | None = None
        self._ahead: State | None = None  # before the batch that was fetched ahead of its turn
        self._ended = False  # whether there was none
        self._resumed: State | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch; TypeError where the loader does not know."""
        return len(range(self.first, len(self.loader), self.every))

    def batches(self, count: int | None, most: int | None = None) -> Iterator[tuple[Any, bool]]:
        """Begin an epoch, or go on with a resumed one: return up to `count` batches, and whether each is the last.

        Where the count is not known, the next one is fetched ahead to know; but none beyond the `most` that are wanted.
        """
        source = self._epoch()
        return self._looking_ahead(source, most) if count is None else self._counted(source, count)

    def each(self) -> Iterator[Any]:
        """Begin an epoch, or go on with a resumed one: return its batches."""
        return (batch for batch, _ in self._counted(self._epoch(), None))

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch begins."""
        items: list[Any] = [getattr(self.loader, name, None) for name in ("batch_sampler", "sampler")]
        if isinstance(dataset := getattr(self.loader, "dataset", None), IterableDataset):
            items.append(dataset)
        for item in (*items, self.loader):
            if hasattr(item, "set_epoch"):
                item.set_epoch(epoch)

    def end_epoch(self) -> None:
        """Say that the epoch is over: the next one begins at its first batch."""
        if self._resumed is not None:  # at the end of an epoch, of which nothing is left
            self._pass_resumed()
        self._start = None

    @property
    def at_end(self) -> bool:
        """Whether no epoch has begun, or the one that has is over."""
        return self._start is None or self._ended

    def state_dict(self, done: int | None = None) -> State:
        """Return what brings a feed to where `done` batches have been given; default: to where it is."""
        own = self._generators.own_state()
        if self._start is None:
            return {"position": None, "own": own, **self._between_epochs()}
        done = self.position if done is None else done
        extra = self._extra(done) if self._ahead is None else self._ahead["extra"]
        ahead = None if self._ahead is None else self._ahead["generators"]
        begun = {"start": self._start, "first": self._first, "ahead": ahead, "ended": self._ended}
        return {"position": done, "own": own, **begun, **extra}

    def load_state_dict(self, state: State) -> None:
        """Take up a state: the next iteration goes on there, and leaves the global generators as they are."""
        if state["position"] is None:
            self._generators.load_own_state(state["own"])
        else:
            self._resumed = state

    def _epoch(self) -> Iterator[Any]:
        state, self._resumed = self._resumed, None
        self._ahead, self._ended = None, False
        if state is None:
            self._start, self._first = self._generators.state_dict(), None
            self.position = 0
            return self._begin()
        now = self._generators.state_dict()
        self._generators.load_state_dict(state["start"])
        self._start, self._first, self.position = state["start"], state["first"], state["position"]
        self._ended = state["ended"]
        source = self._go_on(state)
        if self._ended:
            source = iter(())
        if state["ahead"] is not None:
            self._generators.load_state_dict(state["ahead"])
            self._remember_ahead()
            source = itertools.chain(list(itertools.islice(source, 1)), source)
        self._generators.load_state_dict({**now, "own": state["own"]})
        return source

    def _counted(self, source: Iterator[Any], count: int | None) -> Iterator[tuple[Any, bool]]:
        self._remember_first()
        left = None if count is None else max(0, count - self.position)
        for batch in itertools.islice(source, left):
            self.position += 1
            yield batch, self.position == count
        self._ended = True

    def _looking_ahead(self, source: Iterator[Any], most: int | None) -> Iterator[tuple[Any, bool]]:
        self._remember_first()
        held = list(itertools.islice(source, 1))
        while held:
            batch = held.pop()
            self.position += 1
            if self.position == most:
                self._ahead = None
                yield batch, False
                return
            self._remember_ahead()
            held = list(itertools.islice(source, 1))
            if not held:
                self._ahead, self._ended = None, True
            yield batch, not held

    def _remember_first(self) -> None:
        if self._first is None:
            self._first = self._generators.state_dict()

    def _remember_ahead(self) -> None:
        self._ahead = {"generators": self._generators.state_dict(), "extra": self._extra(self.position)}

    def _pass_resumed(self) -> None:
        assert self._resumed is not None
        self._generators.load_own_state(self._resumed["own"])
        self._resumed = None

    def record_indices(self) -> None:
        """Keep, from the next epoch on, the indices of the batches that are given; where they are known."""

    @property
    def batch_indices(self) -> list[Any] | None:
        """The indices of the rows of the batch given last; None where nobody knows, or nobody asked to keep them."""
        return None

    # ---- what differs between loaders --------------------------------------------------------------------------------

    def _begin(self) -> Iterator[Any]:
        """Return the batches of a new epoch."""
        return itertools.islice(self.loader, self.first, None, self.every)

    def _go_on(self, state: State) -> Iterator[Any]:
        """Return the batches from the state's position on; what is drawn on the way there is drawn here."""
        source = self._begin()
        if state["first"] is not None:
            self._generators.load_state_dict(state["first"])
        for _ in itertools.islice(source, state["position"]):
            pass
        return source

    def _extra(self, done: int) -> State:
        """Return what else `_go_on` needs to know."""
        return {}

    def _between_epochs(self) -> State:
        """Return what else there is to keep where no epoch has begun."""
        return {}


class StatefulFeed(Feed):
    """Of a loader that says where it is and can be told; or one whose dataset, the `keeper`, does."""

    def __init__(self, loader: Any, keeper: Any, every: int = 1, first: int = 0) -> None:
        super().__init__(loader, every, first)
        self._keeper = keeper
        self._loaded = False  # with the state of an epoch's end

    def load_state_dict(self, state: State) -> None:
        """Take up a state; what the loader counts over epochs, it is told at once."""
        super().load_state_dict(state)
        if state["position"] is None:
            self._keeper.load_state_dict(state["loader"])
            self._loaded = True

    def _begin(self) -> Iterator[Any]:
        """Begin an epoch. A loader that was told that it had ended may give the rest of that first: nothing."""
        loaded, self._loaded = self._loaded, False
        if not loaded:
            return super()._begin()
        before = self._generators.state_dict()
        source = iter(self.loader)
        held = list(itertools.islice(source, 1))
        if not held:
            self._generators.load_state_dict(before)
            return super()._begin()
        return itertools.islice(itertools.chain(held, source), self.first, None, self.every)

    def _go_on(self, state: State) -> Iterator[Any]:
        self._keeper.load_state_dict(state["loader"])
        passed = self.first + state["position"] * self.every if not state["position"] else self.every - 1
        return itertools.islice(self.loader, passed, None, self.every)

    def _extra(self, done: int) -> State:
        return {"loader": self._keeper.state_dict()}

    def _between_epochs(self) -> State:
        return self._extra(0)


class MapFeed(Feed):
    """Of an ordinary DataLoader over a map-style dataset that loads in this process."""

    def __init__(self, loader: DataLoader[Any], every: int = 1, first: int = 0) -> None:
        super().__init__(loader, every, first)
        self._order = Order(loader.sampler if loader.batch_sampler is None else loader.batch_sampler, every, first)
        self._inner = self._like(loader)

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch begins."""
        self._order.set_epoch(epoch)

    def record_indices(self) -> None:
        """Keep the indices; those of batches that come in another order than they were asked for are unknown."""
        if self.loader.in_order or not self.loader.num_workers:
            self._order.record = deque()

    @property
    def batch_indices(self) -> list[Any] | None:
        """The indices of the rows of the batch given last."""
        found = self._order.recorded(self.position - 1)
        if found is None:
            return None
        return [found] if self.loader.batch_sampler is None else list(found)

    def _like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return a loader like `loader`, in our order."""
        rows = whole_batches(loader)
        if rows is None:
            return _like(loader, self._order, loader.dataset, loader.collate_fn)
        return _like(loader, self._order, rows, as_it_is)

    def _begin(self) -> Iterator[Any]:
        self._order.skip = 0
        return iter(self._inner)

    def _go_on(self, state: State) -> Iterator[Any]:
        self._order.skip = state["position"]
        source = iter(self._inner)
        if state["position"]:
            self._generators.load_state_dict(state["first"])
            self._order.pass_over()
        return source


class WorkerFeed(MapFeed):
    """Of an ordinary DataLoader over a map-style dataset that loads in worker processes.

    Batch `n` is the `n % workers`-th worker's. A resumed feed begins with the round of batches that the position is
    in, with each worker's generators as they were then, and drops those of the round that were given already.
    """

    def __init__(self, loader: DataLoader[Any], every: int = 1, first: int = 0) -> None:
        self._workers = loader.num_workers
        self._persistent = loader.persistent_workers
        self._history = History(self._workers)
        self._given = 0  # batches taken from the workers in this epoch
        self._running = self._were_running = False  # persistent workers: now, and when the epoch began
        super().__init__(loader, every, first)

    def load_state_dict(self, state: State) -> None:
        """Take up a state; persistent workers begin with their generators as they were."""
        super().load_state_dict(state)
        if state["position"] is None and self._persistent:
            self._load_workers(state)

    def _like(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        self._begin_worker = Begin(loader.worker_init_fn, loader.collate_fn)
        inner = _like(loader, self._order, loader.dataset, Traced(loader.collate_fn))
        inner.worker_init_fn = self._begin_worker
        # The seed of the workers is drawn from a copy: where workers go on with their states, none must be drawn.
        inner.generator = self._seeds = torch.Generator()
        return inner

    def _begin(self) -> Iterator[Any]:
        self._history.begin(self._persistent)
        self._were_running = self._running
        return self._iterate(0)

    def _go_on(self, state: State) -> Iterator[Any]:
        self._load_workers(state)
        self._were_running = self._running
        begun = state["position"] - state["position"] % self._workers
        source = self._iterate(begun)
        for _ in itertools.islice(source, state["position"] - begun):
            pass
        return source

    def _extra(self, done: int) -> State:
        return {"workers": self._history.before(done, self._given), "running": self._were_running}

    def _between_epochs(self) -> State:
        return {"workers": self._history.last(), "running": self._running} if self._persistent else {}

    def _pass_resumed(self) -> None:
        if not self._persistent:
            super()._pass_resumed()
            return
        for _ in self.each():  # the workers go on in the next epoch, and must be where they were
            pass

    def _load_workers(self, state: State) -> None:
        self._history.load(state["workers"])
        self._begin_worker.states = state["workers"]
        self._running = state["running"]

    def _iterate(self, begun: int) -> Iterator[Any]:
        """Start the workers, seeded as a DataLoader does, and yield the batches from number `begun` on."""
        if not self._running:
            own = self.loader.generator
            self._seeds.set_state((torch.default_generator if own is None else own).get_state())
            torch.empty((), dtype=torch.int64).random_(generator=own)
        self._running = self._persistent
        self._order.skip, self._given = begun, begun
        source = iter(self._inner)
        self._begin_worker.states = []
        return self._taken(source)

    def _taken(self, source: Iterator[Any]) -> Iterator[Any]:
        for batch, state in source:
            self._history.add(self._given, state)
            self._given += 1
            yield batch


def _like(loader: DataLoader[Any], order: Order, dataset: Any, collate: Callable[[Any], Any]) -> DataLoader[Any]:
    options = {name: getattr(loader, name) for name in _OPTIONS}
    if not loader.num_workers:
        options |= {"prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None}
    if loader.batch_sampler is None:
        options |= {"batch_size": None, "sampler": order}
    else:
        options["batch_sampler"] = order
    return DataLoader(dataset, collate_fn=collate, generator=loader.generator, **options)
