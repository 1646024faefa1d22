"""How the rows of a step, and of an epoch, are shared between workers whose number may change.

A run with `workers=(2, 8)` takes as many rows in a step as eight workers would, however many there are: its learning
rate stays right, and an epoch has as many steps. All workers walk through one order of the rows, each taking every
n-th, so that after `k` steps the first `k` steps' rows of it are done; other workers go on right there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DistributedSampler

LEAST_SHARE = 4  # a batch is not made smaller than this part of the loader's own to come out even


@dataclass(frozen=True)
class Share:
    """What each of `workers` does in a step: gradients of so many batches, of so many rows each."""

    workers: int
    batch_size: int
    accumulate: int

    @property
    def rows(self) -> int:
        """The rows of a step of all workers."""
        return self.workers * self.batch_size * self.accumulate


def shared(rows: int, workers: int, most: int) -> Share:
    """Return how `workers` share a step of `rows` rows in batches of at most `most`: exactly if they can, or nearly."""
    each = rows // workers
    least = max(1, -(-each // most))
    if not rows % workers:
        for accumulate in range(least, each + 1):
            if each // accumulate * LEAST_SHARE < most:
                break
            if not each % accumulate:
                return Share(workers, each // accumulate, accumulate)
    accumulate = max(1, -(-rows // (workers * most)))
    return Share(workers, max(1, min(most, round(rows / (workers * accumulate)))), accumulate)


@dataclass(frozen=True)
class Moved:
    """Where an epoch that other workers have begun goes on: after the first `rows` of its order.

    Args:
        epoch: in which it is so; all others are whole.
        rows: of the order that are done.
        given: rows that each worker counts as given to it already.
    """

    epoch: int
    rows: int
    given: int


class SharedSampler(DistributedSampler[Any]):
    """PyTorch's DistributedSampler, which can go on in the middle of an order that others have begun."""

    moved: Moved | None = None

    def _is_moved(self) -> bool:
        return self.moved is not None and self.epoch == self.moved.epoch

    def __iter__(self) -> Iterator[Any]:
        if not self._is_moved():
            return super().__iter__()
        assert self.moved is not None
        rest = self._order()[self.moved.rows :]
        own = self._even(rest)[self.rank :: self.num_replicas]
        return iter([0] * self.moved.given + own)  # those given are passed over, not loaded

    def __len__(self) -> int:
        if not self._is_moved():
            return super().__len__()
        assert self.moved is not None
        left = max(0, len(self.dataset) - self.moved.rows)  # type: ignore[arg-type]
        share = left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)
        return self.moved.given + share

    def _order(self) -> list[int]:
        """The whole epoch's order, the same for any number of workers."""
        alone: DistributedSampler[Any] = DistributedSampler(
            self.dataset, num_replicas=1, rank=0, shuffle=self.shuffle, seed=self.seed
        )
        alone.set_epoch(self.epoch)
        return list(alone)

    def _even(self, rows: list[int]) -> list[int]:
        """As many for each: rows come again from the beginning, or the last are left out."""
        over = len(rows) % self.num_replicas
        if not over or not rows:
            return rows
        if self.drop_last:
            return rows[:-over]
        missing = self.num_replicas - over
        return rows + (rows * (missing // len(rows) + 1))[:missing]
