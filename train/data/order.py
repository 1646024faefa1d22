"""The order in which a loader takes its rows, begun at any batch, and shared between workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from shipline.train.data.shares import SharedSampler
from shipline.train.seed import rng_state, set_rng_state

# They draw what they need when they begin; what training draws meanwhile does not change them.
_DRAW_AT_ONCE = (
    RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler, SharedSampler,
)  # fmt: skip


class Order(Sampler[Any]):
    """A loader's own (batch) sampler, of which some batches at the beginning are passed over.

    Args:
        sampler: the loader's.
        every: take each `every`-th batch only ...
        first: ... from this one on.
    """

    def __init__(self, sampler: Any, every: int = 1, first: int = 0) -> None:
        self._sampler = sampler
        self._every, self._first = every, first
        self._own_stream = not _draws_at_once(sampler)
        self._source: Iterator[Any] = iter(())
        self._passed = 0
        self.skip = 0
        #: Where it is kept, what was given since, each with its number; off unless somebody asks for it.
        self.record: deque[tuple[int, Any]] | None = None
        self._numbers: Iterator[int] = count()

    def __iter__(self) -> Iterator[Any]:
        source: Iterator[Any] = iter(self._sampler)
        self._source = _in_own_stream(source) if self._own_stream else source
        self._passed = self._first + self.skip * self._every
        if self.record is not None:
            self.record.clear()
            self._numbers = count(self.skip)
        return self

    def __next__(self) -> Any:
        if self._passed:
            self.pass_over()
        batch = next(self._source)
        self._passed = self._every - 1
        if self.record is not None:
            self.record.append((next(self._numbers), batch))
        return batch

    def pass_over(self) -> None:
        """Go to the next batch of this share without giving it yet; what the sampler draws, it draws now."""
        for _ in islice(self._source, self._passed):
            pass
        self._passed = 0

    def __len__(self) -> int:
        return len(range(self._first, len(self._sampler), self._every))

    def recorded(self, number: int) -> Any:
        """Return what was given as number `number` of this share, and forget what came before; None if unknown."""
        record = self.record or ()
        while record and record[0][0] < number:
            record.popleft()
        return record[0][1] if record and record[0][0] == number else None

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch begins, as PyTorch's DistributedSampler wants it."""
        samplers: list[Any] = [self._sampler, getattr(self._sampler, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)


def _draws_at_once(sampler: Any) -> bool:
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in _DRAW_AT_ONCE


def _in_own_stream(source: Iterator[Any]) -> Iterator[Any]:
    """Give a sampler of the user's random numbers of its own.

    It may draw some for each batch. Drawn between those of training, they would be others when a resumed run goes
    through the same batches without training on them.
    """
    own = rng_state()
    while True:
        training = rng_state()
        set_rng_state(own)
        try:
            batch = next(source)
        except StopIteration:
            return
        finally:
            own = rng_state()
            set_rng_state(training)
        yield batch
