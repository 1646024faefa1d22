"""Evaluation of sharded weights by workers of which some have a batch less: those lend their shards to the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from shipline.train.strategies.sharded import Sharded

_DONE = b"done"
#: Every worker makes the same ones in the same order; the store keeps the words of all.
_NUMBERS = count()


class Lending:
    """Keeps workers in step: a unit's weights become whole on all of them or on none.

    Who has a batch announces each unit as it computes, in the process group's store; who has none follows. So nobody
    computes a batch twice, and no metric counts one twice.
    """

    def __init__(
        self, units: dict[str, FSDPModule], strategy: Sharded, stage: int = 0, step: str | None = None
    ) -> None:
        """Let workers of one pipeline stage keep in step.

        Args:
            units: by name.
            strategy: of the workers.
            stage: of this worker.
            step: the unit that steps make whole themselves.
        """
        self._strategy, self._units, self._step = strategy, units, step
        self._peers = [rank for rank in range(strategy.world_size) if strategy.arrangement.place(rank)[0] == stage]
        self._name, self._rounds = f"shipline-lending/{next(_NUMBERS)}/{stage}", count()
        self._key: str | None = None
        self._told: list[str] = []  # what the store keeps of this worker's words
        for name, unit in units.items():
            cast(nn.Module, unit).register_forward_pre_hook(
                lambda _unit, _inputs, name=name: self._announce(name), prepend=True
            )

    def batches(self, own: Iterator[Any]) -> Iterator[Any]:
        """Return this worker's batches, and lend while others have more."""
        nothing = object()
        self._free_after_forward(free=True)
        while True:
            batch = next(own, nothing)
            key = f"{self._name}/{next(self._rounds)}"
            have = self._strategy.gather(batch is not nothing)
            self._forget()
            if not any(have):
                self._free_after_forward(free=self._strategy.frees_after_forward)
                return
            leader = next(rank for rank in self._peers if have[rank])
            if batch is nothing:
                self._lend(key)
            elif not all(have) and self._strategy.rank == leader:
                yield from self._announcing(key, batch)
            else:
                yield batch

    def _free_after_forward(self, *, free: bool) -> None:
        """Let all begin and end alike: with sharded weights, where they would otherwise stay whole for training."""
        if not self._strategy.frees_after_forward:
            for unit in self._units.values():
                unit.reshard()
                unit.set_reshard_after_forward(free, recurse=False)

    def _announcing(self, key: str, batch: Any) -> Iterator[Any]:
        """Give the batch, and tell the others what its steps make whole."""
        self._key = key
        try:
            if self._step is not None:
                self._announce(self._step)
            yield batch
        finally:
            self._tell(_DONE)
            self._key = None

    def _announce(self, name: str) -> None:
        if self._key is not None and not _is_whole(self._units[name]):
            self._tell(name.encode())

    def _tell(self, word: bytes) -> None:
        key = f"{self._key}/{len(self._told)}"
        _store().set(key, word)
        self._told.append(key)

    def _forget(self) -> None:
        """Let the store forget what was told of the last batch: all others are past it, since all have met again."""
        for key in self._told:
            _store().delete_key(key)
        self._told.clear()

    def _lend(self, key: str) -> None:
        next(iter(self._units.values()))._get_fsdp_state()._lazy_init()  # noqa: SLF001 -- its first forward pass would
        for number in count():
            word = _store().get(f"{key}/{number}")
            if word == _DONE:
                return
            unit = self._units[word.decode()]
            unit.unshard()
            unit.reshard()


def _is_whole(unit: FSDPModule) -> bool:
    groups = unit._get_fsdp_state()._fsdp_param_groups  # noqa: SLF001 -- nothing public says it
    return all(group.is_unsharded for group in groups)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001 -- it has no public name
